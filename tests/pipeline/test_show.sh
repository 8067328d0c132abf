#!/usr/bin/env bash
# lvpipe show: the answers of caption, the patches that are kept, and a picture of them.
. "$(dirname "$0")/lib.sh"

prompts=("Describe the image." "How many objects are there besides signs?")
show=("$LVPIPE" show --model "$MODEL" --image "$IMAGES/scene-0001.png" --output "$work/kept.png" --prompt "${prompts[0]}" --prompt "${prompts[1]}")
run 0 "${show[@]}" --json
cp "$work/stdout" "$work/shown"
caption asked --input "$IMAGES/scene-0001.png" --prompt "${prompts[0]}" --prompt "${prompts[1]}" --threads 1
expect "the answers of caption" "$(jq -c '[.prompt, .answer]' "$work/shown")" \
  "$(jq -c '[.prompt, .caption]' "$work/asked/captions.jsonl")"
expect "patches kept" "$(jq -c '[.points[] | [.after_layer, (.kept | length)]]' "$work/shown" | sort -u)" '[[1,72],[2,43],[4,14]]'
expect "what was removed stays away" \
  "$(jq -c '[.points[].kept] | (.[1] - .[0] == []) and (.[2] - .[1] == [])' "$work/shown" | sort -u)" true
expect "what is left is scored" "$(jq -c '[.points[].scores | length]' "$work/shown" | sort -u)" '[144,72,43]'
expect "and the best of it is kept" \
  "$(jq -c '[.points[] | (.kept | length) as $k | .kept == ([.scores | sort_by(-.[1], .[0]) | .[:$k][][0]] | sort)] | all' "$work/shown" | sort -u)" true
expect "caption's tokens" "$(jq -c .token_ids "$work/shown")" "$(jq -c .token_ids "$work/asked/captions.jsonl")"
cp "$work/kept.png" "$work/dimmed.png"
run 0 "${show[@]}" --scores
cmp -s "$work/kept.png" "$work/dimmed.png" && fail "--scores draws what is drawn without"
expect "a PNG of four panels and two rows" "$(od -An -tx1 -j1 -N3 "$work/kept.png" | tr -d ' ')" 504e47
# 168 pixels twice as large, four times with margins of 12; the picture is an image that lvpipe reads.
expect "its width" $((16#$(od -An -tx1 -j16 -N4 "$work/kept.png" | tr -d ' '))) $((4 * (336 + 12) + 12))
caption drawn --input "$work/kept.png" --max-new-tokens 4
run 0 "${show[@]}" --pruner random --seed 3 --keep 0.3 --prompt '{id}, {image}: {{what}}?' --json
cp "$work/stdout" "$work/shown"
caption chance --input "$IMAGES/scene-0001.png" --prompt "${prompts[0]}" --prompt "${prompts[1]}" --prompt '{id}, {image}: {{what}}?' \
  --pruner random --seed 3 --keep 0.3 --threads 1
expect "at random, caption's answers and prompts" "$(jq -c '[.prompt, .answer]' "$work/shown")" \
  "$(jq -c '[.prompt, .caption]' "$work/chance/captions.jsonl")"

mkdir "$work/bare" && ln -s "$MODEL"/* "$work/bare" && rm "$work/bare/lvpruning.safetensors"
run 3 "${show[@]}" --model "$work/bare" --pruner lvpruning && says "has no lvpruning.safetensors"
for option in --stages=2 --replicas=2 --partition=prune --batch-tokens=99 --device=cuda --weights=int8; do
  run 2 "${show[@]}" "$option" && says "${option%=*}"
done
run 2 "${show[@]}" --prompt '{txt}?' && says 'no field "txt"'
run 2 "${show[@]}" --prompt $'\xff' && says "not valid UTF-8"
run 2 "${show[@]}" --pruner none && says "nothing is pruned"
run 2 "$LVPIPE" show --model "$MODEL" --image "$work/none.png" --output "$work/x.png" && says "--image $work/none.png"
run 2 "${show[@]}" --output "$work/kept.jpg" && says "what is drawn is a PNG"
run 2 "${show[@]}" --output "$work/nowhere/x.png" && says "nowhere/x.png: No such file"
finish
