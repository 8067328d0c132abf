#!/usr/bin/env bash
# `lvpipe bench` measures what it says: every combination once, the rows that pruning leaves, times that add up, FLOPs as
# planned, and rates below the limits measured beside them.
. "$(dirname "$0")/lib.sh"

# A model that nobody has: 2 ViT layers, 4 decoder layers, 16 tokens an image.
cat >"$work/shape.json" <<'END'
{"vision_config": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
  "image_size": 32, "patch_size": 8},
 "text_config": {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
  "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128}}
END
few=(--threads 1 --images 6 --text-tokens 8 --new-tokens 5 --repeats 2 -q)
shape=("$LVPIPE" bench --shape "$work/shape.json" "${few[@]}")

# holds WHAT FILTER: true for every result
holds() { [[ $(jq -s "map($2) | all" "$work/stdout") == true ]] || fail "$1" <(jq -c "{keep, stages, it: ($2)}" "$work/stdout"); }

run 0 "${shape[@]}" --keep none,0.5,0.5/0.25/0 --stages 1,3 --concurrency 2,4 --json
expect "combinations" "$(jq -c '[.stages, .keep, .concurrency]' "$work/stdout" | sort -u | wc -l)" 12
expect "rows kept" "$(jq -c 'select(.keep == "0.5/0.25/0").vision_rows' "$work/stdout" | sort -u)" "[16,8,4,0]"
holds "busy seconds are those of its kinds of work" \
  '.workers | all((.busy_seconds - .encode_seconds - .prefill_seconds - .decode_seconds) | fabs < 1e-6)'
holds "nobody is faster than the machine" '.of_roof > 0 and .of_roof < 1'
holds "nobody is busy for longer than it takes" '.bubble_share > 0 and .bubble_share < 1'
holds "the median of two repeats is that of the two" \
  '(.images_per_second.median * (.seconds | add / 2) - .images) | fabs < 1e-6'
holds "every image gives its tokens" '(.tokens_per_second.median / .images_per_second.median - 5) | fabs < 1e-6'
holds "selecting takes time where there is something to select" \
  '(.keep == "none") == ([.workers[].select_seconds] | add == 0)'
# 6 prompts of 16 + 8 rows and 6 x 4 decode rows leave each stage unpruned.
expect "rows over a cut, unpruned" \
  "$(jq -c 'select(.keep == "none" and .stages == 3).workers[1].rows_out' "$work/stdout" | sort -u)" 168
holds "pruning takes rows off the last cut" \
  '.stages == 1 or (.keep == "none") == (.workers[1] | .rows_out == .unpruned_rows_out)'

holds "every cut's link is measured, and the last stage has none" \
  '.stages as $n | all(.workers[]; (.link_bytes_per_second > 0 and .link_seconds > 0) == (.stage < $n - 1))'

cp "$work/stdout" "$work/results"
run 0 "$LVPIPE" plan --shape "$work/shape.json" --pruner none --text-tokens 8 --new-tokens 5 --json
expect "FLOPs of an image" "$(jq -s 'map(select(.keep == "none").flops_per_image + 0.5 | floor) | unique[]' "$work/results")" \
  "$(jq '((.total.prefill_tflops + .total.decode_tflops) * 1e12 + 0.5) | floor' "$work/stdout")"

run 0 "$LVPIPE" bench --model "$MODEL" --keep none,0.5 --json "${few[@]}"
expect "a model's own modules" "$(jq -s -c 'map(.pruner_width)' "$work/stdout")" "[0,40]"

run 0 "$LVPIPE" bench --model "$MODEL" --partition 9 --keep 0.5 --trace "$work/trace" --json "${few[@]}"
expect "the result without the timeline" "$(jq -c .trace "$work/stdout")" null
expect "a timeline's kinds of spans, and one prefill at least for each rank" \
  "$(jq -c '[map(.cat // empty) | unique[]] + [map(select(.cat == "prefill").pid) | unique[]]' "$work/trace")" \
  '["decode","encode","image","prefill","send",1,2]'
expect "no span ends before it begins" "$(jq 'map(select(.dur != null and .dur < 0)) | length' "$work/trace")" 0
expect "images" "$(jq 'map(select(.cat == "image" and .ph == "b")) | length' "$work/trace")" 6

run 0 "$LVPIPE" bench --model "$MODEL" --keep none --weights int8 --json "${few[@]}"
expect "the types" "$(jq -c '[.dtype, .weights]' "$work/stdout")" '["bf16","int8"]'

mpi=(mpirun --oversubscribe --host localhost:3 -n 3)
run 0 "${mpi[@]}" "${shape[@]}" --keep none,0.5 --json
expect "the ranks of mpirun are the stages" "$(jq -s -c 'map([.keep, .stages])' "$work/stdout")" '[["none",2],["0.5",2]]'
run 2 "${mpi[@]}" "${shape[@]}" --stages 1,2
says "worlds of several sizes"
run 2 "${shape[@]}" --text-tokens 400
says "the model has 128"
run 0 "${shape[@]}" --pruner none --keep 0.5 --repeats 1 --json
expect "what is not pruned is not labelled as if" "$(jq -r .keep "$work/stdout")" none
run 2 "${shape[@]}" --calibrate "$work/profile" --device cuda
says "profiles are of CPUs"
run 2 "$LVPIPE" plan --shape "$work/shape.json" --text-tokens 8 --new-tokens 5 --replicas 2
says "give --stages"
run 2 "$LVPIPE" plan --shape "$work/shape.json" --text-tokens 400
says "the model has 128"
run 2 "$LVPIPE" bench
says "either --model DIR or --shape NAME"
finish
