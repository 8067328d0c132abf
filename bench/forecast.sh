#!/usr/bin/env bash
# How well lvpipe plan --profile foretells this machine: images/s predicted and measured for two shapes, 1, 2 and 4 stages,
# unpruned and at keep 0.5. The profile is measured first. About ten minutes.
#
#   bench/forecast.sh [IMAGES [NEW_TOKENS]]      24 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

images=${1:-24} new_tokens=${2:-16} lvpipe=build/release/lvpipe
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/wide.json" <<'END'
{"vision_config": {"hidden_size": 512, "num_hidden_layers": 5, "num_attention_heads": 8, "intermediate_size": 2048,
  "image_size": 224, "patch_size": 14},
 "text_config": {"vocab_size": 8000, "hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16,
  "num_key_value_heads": 4, "intermediate_size": 2816, "max_position_embeddings": 1024}}
END
cat >"$work/deep.json" <<'END'
{"vision_config": {"hidden_size": 256, "num_hidden_layers": 7, "num_attention_heads": 4, "intermediate_size": 1024,
  "image_size": 168, "patch_size": 14},
 "text_config": {"vocab_size": 4000, "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8,
  "num_key_value_heads": 8, "intermediate_size": 1408, "max_position_embeddings": 1024}}
END

printf '%-6s %6s %6s %12s %12s %8s\n' shape stages keep predicted measured error
for shape in wide deep; do
  "$lvpipe" bench --shape "$work/$shape.json" --calibrate "$work/profile.json" -q
  for stages in 1 2 4; do
    common=(--shape "$work/$shape.json" --stages $stages --images "$images" --new-tokens "$new_tokens"
      --profile "$work/profile.json")
    width=$(($(jq .text_config.hidden_size "$work/$shape.json") / 8))
    "$lvpipe" bench "${common[@]}" --keep none,0.5 --repeats 3 --json -q >"$work/measured"
    # The plan assumes full-width modules where there is no file, the bench an eighth: its own count is told.
    "$lvpipe" plan "${common[@]}" --keep 0.5 --pruner-width $width --json | jq '.forecast[0]' >"$work/predicted"
    for keep in none 0.5; do
      measured=$(jq "select(.keep == \"$keep\").images_per_second.median" "$work/measured")
      [[ $keep == none ]] && side=dense || side=pruned
      predicted=$(jq ".$side.images_per_second" "$work/predicted")
      awk -v shape=$shape -v stages=$stages -v keep=$keep -v p="$predicted" -v m="$measured" \
        'BEGIN { printf "%-6s %6d %6s %12.3f %12.3f %+7.1f%%\n", shape, stages, keep, p, m, 100 * (p / m - 1) }'
    done
  done
done
