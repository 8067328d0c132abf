#!/usr/bin/env bash
# How well lvpipe plan --profile foretells this machine: images/s predicted and measured for two shapes, 1, 2 and 4 stages,
# unpruned and at keep 0.5. Every round measures a new profile and then each case once, since machines change their mind;
# medians of the rounds are printed, and of their own ratios.
#
#   bench/forecast.sh [IMAGES [NEW_TOKENS [ROUNDS]]]      32 16 3: about twenty minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

images=${1:-32} new_tokens=${2:-16} rounds=${3:-3} lvpipe=build/release/lvpipe
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

# one_case SHAPE STAGES: appends "shape stages keep predicted measured" for both keeps
one_case() {
  local common=(--shape "$work/$1.json" --stages "$2" --images "$images" --new-tokens "$new_tokens" --profile "$work/profile.json")
  local width keep side
  width=$(($(jq .text_config.hidden_size "$work/$1.json") / 8))
  "$lvpipe" bench "${common[@]}" --keep none,0.5 --repeats 1 --json -q >"$work/measured"
  # The plan assumes full-width modules where there is no file, the bench an eighth: its own count is told.
  "$lvpipe" plan "${common[@]}" --keep 0.5 --pruner-width $width --json | jq '.forecast[0]' >"$work/predicted"
  for keep in none 0.5; do
    [[ $keep == none ]] && side=dense || side=pruned
    echo "$1 $2 $keep $(jq ".$side.images_per_second" "$work/predicted")" \
      "$(jq "select(.keep == \"$keep\").images_per_second.median" "$work/measured")" >>"$work/cases"
  done
}

for shape in wide deep; do
  for ((round = 1; round <= rounds; round++)); do
    "$lvpipe" bench --shape "$work/$shape.json" --calibrate "$work/profile.json" -q
    for stages in 1 2 4; do one_case $shape $stages; done
  done
done

awk '
  function median(n, list,  i, j, x) {
    for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j] < list[j - 1]; j--) { x = list[j]; list[j] = list[j - 1]; list[j - 1] = x }
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
  }
  { key = $1 " " $2 " " $3; if (!(key in n)) order[++cases] = key
    i = ++n[key]; predicted[key, i] = $4; measured[key, i] = $5 }
  END {
    printf "%-6s %6s %6s %12s %12s %8s   of each round\n", "shape", "stages", "keep", "predicted", "measured", "error"
    for (c = 1; c <= cases; c++) {
      key = order[c]; each = ""
      for (i = 1; i <= n[key]; i++) {
        p[i] = predicted[key, i]; m[i] = measured[key, i]; r[i] = p[i] / m[i] - 1
        each = each sprintf(" %+.1f", 100 * r[i])
      }
      split(key, part, " ")
      printf "%-6s %6d %6s %12.3f %12.3f %+7.1f%%  %s\n", part[1], part[2], part[3], median(n[key], p), median(n[key], m),
        100 * median(n[key], r), each
    }
  }' "$work/cases"
