#!/usr/bin/env bash
# The promise: captions.jsonl has the same bytes whatever the partition, replicas, threads, step size and input order. Every
# variation is compared with one stage and one thread, in each numeric type, greedy and sampled.
. "$(dirname "$0")/lib.sh"

RANDOM=2024 # the partitions are random, and the same each time
example_manifest >"$work/rows.jsonl"
shuf --random-source=<(yes) "$work/rows.jsonl" >"$work/shuffled.jsonl"
blocks=$("$LVPIPE" plan --model "$MODEL" --json | jq .blocks)
prompts=(--prompt "Describe the image." --prompt "How many objects are there besides signs?")

random_cuts() { # 1 to 4 cuts anywhere in the chain of blocks
  local n=$((1 + RANDOM % 4)) i
  for ((i = 0; i < n; i++)); do echo $((1 + RANDOM % (blocks - 1))); done | sort -nu | paste -sd,
}

check() { # check WHAT OPTIONS...
  local what=$1
  shift
  caption other --input "$work/rows.jsonl" --overwrite "${common[@]}" "$@" || return
  same base/captions.jsonl other/captions.jsonl "$setting, $what"
}

for types in "bf16" "f32" "f16" "bf16 --weights int8"; do
  for sampling in greedy sampled; do
    # Where the weights' bits come from does not change what the rest depends on: the other types once each.
    [[ $types == "f16" && $sampling == greedy || $types == *int8 && $sampling == sampled ]] && continue
    setting="$types $sampling"
    common=(--dtype $types --max-new-tokens 12 "${prompts[@]}")
    [[ $sampling == sampled ]] && common+=(--temperature 0.8 --top-p 0.9 --logprobs --seed 7)
    caption base --input "$work/rows.jsonl" --overwrite --stages 1 --threads 1 "${common[@]}" || continue
    expect "$setting, rows" "$(wc -l <"$work/base/captions.jsonl")" 20
    for stages in 2 3 4; do check "$stages stages" --stages "$stages" --threads 1; done
    for ((i = 0; i < 5; i++)); do
      cuts=$(random_cuts)
      check "partition $cuts" --partition "$cuts" --threads 1
    done
    check "2 replicas of 2 stages" --stages 2 --replicas 2 --threads 1
    check "2 threads" --stages 1 --threads 2
    for rows in 1 400 4000; do check "$rows rows a step" --stages 2 --batch-tokens "$rows" --threads 1; done
    caption other --input "$work/shuffled.jsonl" --overwrite "${common[@]}" --stages 2
    sort "$work/base/captions.jsonl" >"$work/base.sorted"
    sort "$work/other/captions.jsonl" >"$work/other.sorted"
    cmp -s "$work/base/captions.jsonl" "$work/other/captions.jsonl" && fail "$setting: a shuffled input kept its order"
    same base.sorted other.sorted "$setting, shuffled input"
    caption other --input "$work/rows.jsonl" --overwrite "${common[@]}" --limit 3
    head -n 6 "$work/base/captions.jsonl" >"$work/head.jsonl"
    same head.jsonl other/captions.jsonl "$setting, fewer neighbours"
  done
done
# The comparisons mean something only if captions can differ.
[[ $(jq -r .caption "$work/base/captions.jsonl" | sort -u | wc -l) -gt 3 ]] || fail "all captions are alike"
finish
