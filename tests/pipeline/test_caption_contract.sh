#!/usr/bin/env bash
# What a user meets: rows, prompts, resuming, exit statuses and run.json of `lvpipe caption`, as the documentation has them.
. "$(dirname "$0")/lib.sh"

example_manifest >"$work/rows.jsonl"
short=(--max-new-tokens 8 --threads 1)
lines() { wc -l <"$work/$1"; }

# --- rows
caption plain --input "$IMAGES" "${short[@]}"
expect "rows of a folder" "$(lines plain/captions.jsonl)" 10
expect "no errors" "$(lines plain/errors.jsonl)" 0
expect "fields and their order" "$(jq -rc 'keys_unsorted|join(",")' "$work/plain/captions.jsonl" | sort -u)" \
  id,image,prompt,caption,finish_reason,token_ids,prompt_tokens,vision_tokens
expect "ids of a folder, in byte order" "$(jq -r .id "$work/plain/captions.jsonl" | paste -sd' ')" \
  "$(cd "$IMAGES" && LC_ALL=C ls | grep -v manifest | paste -sd' ')"
expect "vision tokens at keep 0.5" "$(jq -c .vision_tokens "$work/plain/captions.jsonl" | sort -u)" '[[144,72,43,14]]'
expect "the default prompt" "$(jq -r .prompt "$work/plain/captions.jsonl" | sort -u)" "Describe the image."
expect "length is said" "$(jq -r 'select((.token_ids|length)==8 and .token_ids[-1]!=2).finish_reason' "$work/plain/captions.jsonl" | sort -u)" length
expect "stop ends with eos" "$(jq -c 'select(.finish_reason=="stop" and .token_ids[-1]!=2)' "$work/plain/captions.jsonl")" ""
expect "captions are trimmed" "$(jq -c 'select(.caption|test("^\\s|\\s$"))' "$work/plain/captions.jsonl")" ""
expect "no special tokens in captions" "$(jq -c 'select(.caption|test("</?s>|<image>"))' "$work/plain/captions.jsonl")" ""
tokens=$("$LVPIPE" inspect "$MODEL" --tokenize $'USER: <image>\nDescribe the image. ASSISTANT:' | jq length)
expect "prompt_tokens counts rows after expansion" "$(jq .prompt_tokens "$work/plain/captions.jsonl" | sort -u)" $((tokens + 143))
caption logprobs --input "$IMAGES" "${short[@]}" --logprobs --limit 2
expect "logprobs come last" "$(jq -rc 'keys_unsorted[-1]' "$work/logprobs/captions.jsonl" | sort -u)" logprobs
expect "one log-probability per token, none above 0" \
  "$(jq -c '(.logprobs|length)==(.token_ids|length) and (.logprobs|max)<=0' "$work/logprobs/captions.jsonl" | sort -u)" true
expect "--limit" "$(lines logprobs/captions.jsonl)" 2
# --- scoring: given answers, what the model thinks of them; its own answer scores exactly as when it was generated
caption generated --input "$IMAGES" --threads 1 --logprobs --limit 3
jq -c '{id, image: "'"$IMAGES"'/\(.id)", answer: .caption}' "$work/generated/captions.jsonl" >"$work/answers.jsonl"
jq -c '.answer |= sub("shows|is"; "purple")' "$work/answers.jsonl" >"$work/wrong.jsonl"
caption scored --input "$work/answers.jsonl" --threads 1 --score answer
caption wrong --input "$work/wrong.jsonl" --threads 1 --score answer
scores() { jq -c '[.caption, .token_ids, .logprobs]' "$work/$1/captions.jsonl"; }
expect "an own answer's scores" "$(scores scored)" "$(scores generated)"
expect "greedy decoding would give it" "$(jq -c '.greedy_tokens == (.token_ids|length)' "$work/scored/captions.jsonl" | sort -u)" true
expect "a wrong word" "$(jq -c '.greedy_tokens < (.token_ids|length) and (.logprobs|min) < -1' "$work/wrong/captions.jsonl" | sort -u)" true
run 0 "$LVPIPE" caption --model "$MODEL" --input "$IMAGES" --limit 1 --output "$work/unscored" --score answer -q
expect "no such column" "$(jq -r .error "$work/unscored/errors.jsonl")" prompt_field_missing
caption traced --input "$IMAGES" "${short[@]}" --limit 3 --stages 2 --trace "$work/trace.json"
expect "a timeline of both ranks" "$(jq -c '[map(.cat // empty) | unique[]] + [map(.pid) | unique[]]' "$work/trace.json")" \
  '["decode","encode","image","prefill","send",1,2]'
expect "in which every picture is prepared" "$(jq 'map(select(.cat == "image" and .ph == "b")) | length' "$work/trace.json")" 3
expect "each span's two ends have a number of their own" \
  "$(jq '[map(select(.id != null)) | group_by([.cat, .id])[] | map(.ph) | sort | join("")] | unique | join(" ")' "$work/trace.json")" '"be"'
cp "$work/trace.json" "$work/trace-before.json"
caption traced --input "$IMAGES" "${short[@]}" --limit 3 --stages 2 --trace "$work/trace.json"
expect "a rerun with nothing to do leaves the timeline" "$(cmp "$work/trace.json" "$work/trace-before.json" && echo same)" same
run 2 "$LVPIPE" caption --model "$MODEL" --input "$IMAGES" "${short[@]}" --limit 3 --output "$work/traced" --overwrite --trace "$work/nowhere/t.json" &&
  says "cannot be written"
expect "and nothing was removed for it" "$(lines traced/captions.jsonl)" 3
caption single --input "$IMAGES/scene-0003.png" "${short[@]}"
expect "a single image" "$(jq -r .id "$work/single/captions.jsonl")" scene-0003.png
caption keep --input "$IMAGES/scene-0003.png" "${short[@]}" --keep 1,0.25,0
expect "--keep with a list" "$(jq -c .vision_tokens "$work/keep/captions.jsonl")" '[[144,144,36,0]]'
caption none --input "$IMAGES/scene-0003.png" "${short[@]}" --pruner none
expect "no pruner" "$(jq -c .vision_tokens "$work/none/captions.jsonl")" '[[144]]'
caption random --input "$IMAGES/scene-0003.png" "${short[@]}" --pruner random --prune-after 3
expect "--prune-after" "$(jq -c .vision_tokens "$work/random/captions.jsonl")" '[[144,72]]'
caption twice --input "$IMAGES/scene-0003.png" "${short[@]}" --pruner adaptprune --prune-after 2,4
expect "the share of a pruner of one point at each of two" "$(jq -c .vision_tokens "$work/twice/captions.jsonl")" '[[144,14,14]]'
for stages in 1 4; do
  caption attention-$stages --input "$IMAGES" "${short[@]}" --pruner last-attention --stages $stages
  caption adapt-$stages --input "$IMAGES" "${short[@]}" --pruner adaptprune --stages $stages
done
expect "last-attention" "$(jq -c .vision_tokens "$work/attention-1/captions.jsonl" | sort -u)" '[[144,72]]'
expect "adaptprune" "$(jq -c .vision_tokens "$work/adapt-1/captions.jsonl" | sort -u)" '[[144,14]]'
same attention-1/captions.jsonl attention-4/captions.jsonl "last-attention over 4 stages"
same adapt-1/captions.jsonl adapt-4/captions.jsonl "adaptprune over 4 stages"

# --- prompts
head -n 3 "$work/rows.jsonl" | jq -c '. + {n: 3, thing: ("a \"b\" " + .id), prompt: "From the row."}' >"$work/columns.jsonl"
caption own --input "$work/columns.jsonl" "${short[@]}"
expect "the manifest's prompt" "$(jq -r .prompt "$work/own/captions.jsonl" | sort -u)" "From the row."
expect "the manifest's id" "$(jq -r .id "$work/own/captions.jsonl" | head -1)" scene-0000
caption filled --input "$work/columns.jsonl" "${short[@]}" --prompt 'Is {thing} there {n} times? {{x}}' --prompt Again.
expect "placeholders" "$(jq -r .prompt "$work/filled/captions.jsonl" | sed -n 3p)" 'Is a "b" scene-0001 there 3 times? {x}'
expect "ids of several prompts" "$(jq -r .id "$work/filled/captions.jsonl" | head -3 | paste -sd' ')" "scene-0000#0 scene-0000#1 scene-0001#0"
caption missing_field --input "$work/columns.jsonl" "${short[@]}" --prompt 'A {colour}' --prompt Fine.
expect "a missing field is that row's error" "$(jq -rc '[.id,.error]|join(" ")' "$work/missing_field/errors.jsonl" | head -1)" \
  "scene-0000#0 prompt_field_missing"
expect "the other prompt is answered" "$(lines missing_field/captions.jsonl)" 3
jq -nc --arg d "$IMAGES" '{id: "pair", image: [$d + "/scene-0000.png", $d + "/scene-0001.png"]},
  {id: "one", image: ($d + "/scene-0002.jpg")}, {id: "bad", image: ($d + "/scene-0002.jpg"), prompt: "What is <image>?"}' >"$work/pair.jsonl"
caption pair --input "$work/pair.jsonl" "${short[@]}" --stages 2
expect "two images: vision_tokens" "$(head -1 "$work/pair/captions.jsonl" | jq -c .vision_tokens)" '[[144,72,43,14],[144,72,43,14]]'
expect "two images: a list as in the manifest" "$(head -1 "$work/pair/captions.jsonl" | jq -r '.image|length')" 2
expect "<image> in a manifest's prompt" "$(jq -rc '[.id,.error]|join(" ")' "$work/pair/errors.jsonl")" "bad image_token_in_prompt"
caption raw --input "$work/pair.jsonl" "${short[@]}" --raw-prompt --prompt 'See <image> now'
expect "--raw-prompt: image count" "$(jq -rc '[.id,.error]|join(" ")' "$work/raw/errors.jsonl")" "pair image_count_mismatch"
tokens=$("$LVPIPE" inspect "$MODEL" --tokenize 'See <image> now' | jq length)
expect "--raw-prompt: no template" "$(jq .prompt_tokens "$work/raw/captions.jsonl" | head -1)" $((tokens + 143))
caption system --input "$IMAGES/scene-0003.png" "${short[@]}" --system "You see things."
(($(jq .prompt_tokens "$work/system/captions.jsonl") > $(head -1 "$work/plain/captions.jsonl" | jq .prompt_tokens))) ||
  fail "--system adds no tokens"

# --- resuming
caption whole --input "$work/rows.jsonl" "${short[@]}" --stages 2
caption grown --input "$work/rows.jsonl" "${short[@]}" --limit 4
expect "four rows" "$(lines grown/captions.jsonl)" 4
caption grown --input "$work/rows.jsonl" "${short[@]}" --stages 3 --limit 7
caption grown --input "$work/rows.jsonl" "${short[@]}" --replicas 2
same whole/captions.jsonl grown/captions.jsonl "--limit grows on resume, with other stages"
expect "resumed rows are counted" "$(jq .counts.resumed "$work/grown/run.json")" 7
size=$(stat -c %s "$work/whole/captions.jsonl")
for cut in 0 1 $((size / 3)) $((size / 2)) $((size - 1)); do
  rm -rf "$work/torn" && cp -r "$work/whole" "$work/torn"
  head -c "$cut" "$work/whole/captions.jsonl" >"$work/torn/captions.jsonl"
  caption torn --input "$work/rows.jsonl" "${short[@]}"
  same whole/captions.jsonl torn/captions.jsonl "resume after $cut of $size bytes"
done
resume() { run 2 "$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --output "$work/whole" "${short[@]}" "$@"; }
started=$SECONDS
resume --keep 0.6 && says keep
((SECONDS - started < 9)) || fail "a refusal takes $((SECONDS - started)) s: somebody waits for workers that were never set up"
resume --seed 5 && says seed
resume --temperature 0.5 && says temperature
resume --dtype f32 && says dtype
resume --weights int8 && says weights
resume --system hello && says system
resume --logprobs && says logprobs
resume --pruner none && says pruner
resume --shard 0/2 && says shard
resume --prompt Other. && says scene-0000
resume --max-new-tokens 9 && says max_new_tokens
cp "$work/whole/captions.jsonl" "$work/before.jsonl"
same before.jsonl whole/captions.jsonl "a refused resume changes nothing"
caption whole --input "$work/rows.jsonl" "${short[@]}" --keep 0.6 --overwrite
expect "--overwrite" "$(jq -c .vision_tokens "$work/whole/captions.jsonl" | sort -u)" '[[144,86,58,29]]'

# --- failed samples
mkdir "$work/photos"
cp "$IMAGES"/scene-000[0-2].* "$work/photos"
echo "no image" >"$work/photos/scene-0001.png"
caption failed --input "$work/photos" "${short[@]}"
expect "fields of an error" "$(jq -rc 'keys_unsorted|join(",")' "$work/failed/errors.jsonl")" id,image,error,message,attempts
expect "the error" "$(jq -rc '[.id,.error,.attempts]|join(" ")' "$work/failed/errors.jsonl")" "scene-0001.png not_an_image 1"
cp "$IMAGES/scene-0001.png" "$work/photos"
caption failed --input "$work/photos" "${short[@]}"
expect "a failed sample is not read again" "$(lines failed/errors.jsonl)" 1
caption failed --input "$work/photos" "${short[@]}" --retry-failed
expect "--retry-failed" "$(lines failed/errors.jsonl)" 0
head -n 3 "$work/plain/captions.jsonl" >"$work/three.jsonl"
same three.jsonl failed/captions.jsonl "--retry-failed keeps the input's order"
echo "no image" >"$work/photos/scene-0001.png"
strict=("$LVPIPE" caption --model "$MODEL" --input "$work/photos" --output "$work/strict" "${short[@]}" --max-errors 0)
run 5 "${strict[@]}" && says "--max-errors allows 0 (one of them: scene-0001.png"
expect "run.json of what was done" "$(jq .counts.failed "$work/strict/run.json")" 1
run 5 "${strict[@]}" && says "--max-errors allows 0 (one of them: see errors.jsonl" # whatever is left to do
run 0 "${strict[@]}" --max-errors 1 -q && says "1 failed"

# --- --json when nothing was left to do
run 0 "$LVPIPE" caption --model "$MODEL" --input "$IMAGES" --output "$work/plain" "${short[@]}" --json -q
cmp -s "$work/stdout" "$work/plain/run.json" || fail "--json of a finished run is not its run.json"

# --- a folder of another model, and of a tokenizer that is another model's
mkdir "$work/other" && cp -r "$MODEL"/. "$work/other"
again=("$LVPIPE" caption --model "$work/other" --input "$IMAGES" --output "$work/plain" "${short[@]}")
jq '.eos_token_id = 3' "$MODEL/generation_config.json" >"$work/other/generation_config.json"
run 2 "${again[@]}" && says 'holds a run with config "'
cp "$MODEL/generation_config.json" "$work/other"
jq '.model_max_length = 99' "$MODEL/tokenizer_config.json" >"$work/other/tokenizer_config.json"
run 2 "${again[@]}" && says 'holds a run with tokenizer "'
jq '.image_token_index = 7' "$MODEL/config.json" >"$work/other/config.json"
run 3 "${again[@]}" && says "the tokenizer's <image> is"
run 3 "$LVPIPE" inspect "$work/other" && says "the tokenizer's <image> is"

# --- a token that the tokenizer has and the model has not is a fault of the sample that names it
cp "$MODEL/config.json" "$MODEL/tokenizer_config.json" "$work/other"
jq '.added_tokens += [.added_tokens[-1] + (range(1026; 1035) | {id: ., content: "<far\(.)>"})]' "$MODEL/tokenizer.json" >"$work/other/tokenizer.json"
jq -c 'if .id == "scene-0001" then .prompt = "What is <far1034>?" else . end' "$work/rows.jsonl" | head -n 3 >"$work/far.jsonl"
run 0 "$LVPIPE" caption --model "$work/other" --input "$work/far.jsonl" --output "$work/far" "${short[@]}"
expect "captions beside it" "$(lines far/captions.jsonl)" 2
expect "its error" "$(jq -rc '[.error, .message] | join(" ")' "$work/far/errors.jsonl")" \
  "prompt_field_missing the prompt has token 1034, the model's vocabulary ends at 1031"

# --- shards
for i in 0 1 2; do
  caption "shard$i" --input "$work/rows.jsonl" "${short[@]}" --shard "$i/3"
  jq -r .id "$work/shard$i/captions.jsonl" >>"$work/ids"
done
expect "shards hold every sample once" "$(sort "$work/ids" | paste -sd' ')" "$(jq -r .id "$work/rows.jsonl" | paste -sd' ')"

# --- how many ranks
ranks() { # ranks STATUS N OPTIONS...: under mpirun
  local status=$1 n=$2
  shift 2
  run "$status" mpirun --oversubscribe --bind-to none -n "$n" "$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --output "$work/ranks" "${short[@]}" "$@"
}
ranks 0 3
expect "all workers are stages under mpirun" "$(jq -c '[.world.ranks,.world.stages,.world.replicas]' "$work/ranks/run.json")" "[3,2,1]"
ranks 0 5 --stages 2 --overwrite
expect "the rest are replicas" "$(jq -c '[.world.ranks,.world.stages,.world.replicas]' "$work/ranks/run.json")" "[5,2,2]"
ranks 2 4 --stages 2 && says "3 or 5"
ranks 2 4 --stages 2 --replicas 2 && says "5 ranks"
ranks 2 3 --partition prune && says "5"
ranks 2 1 && says "2 ranks"

# --- usage
usage() { run 2 "$LVPIPE" "$@"; }
usage frobnicate && says frobnicate
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --colour red && says --colour
usage caption --model "$MODEL" --input "$IMAGES" && says --output
usage caption --model "$MODEL" --output "$work/x" && says --input
usage caption --input "$IMAGES" --output "$work/x" && says --model
usage caption --model "$MODEL" --input "$work/nowhere" --output "$work/x" && says nowhere
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --keep 0.5,0.4 && says --keep
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --keep most && says --keep
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --temperature -1 && says --temperature
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --prompt '{open' && says '{open'
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --prompt 'a <image>' && says '<image>'
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --system '<image>' && says '<image>'
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --partition 5,3
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --partition 999 && says 999
usage caption --model "$MODEL" --input "$IMAGES" --output "$work/x" --shard 3/3 && says --shard
[[ -e $work/x ]] && fail "a usage error made the output folder"
run 3 "$LVPIPE" caption --model "$work/nowhere" --input "$IMAGES" --output "$work/x" && says nowhere
run 0 "$LVPIPE" --version
run 0 "$LVPIPE" help caption
grep -q -- --max-new-tokens "$work/stdout" || fail "help caption does not list --max-new-tokens"

# --- run.json, and the bytes that the plan foretold
caption cuts --input "$IMAGES" "${short[@]}" --partition prune --json
expect "--json is run.json" "$(jq -c '[paths]|sort' "$work/stdout" | md5sum) $(jq -c '[.counts,.cuts,.plan]' "$work/stdout")" \
  "$(jq -c '[paths]|sort' "$work/cuts/run.json" | md5sum) $(jq -c '[.counts,.cuts,.plan]' "$work/cuts/run.json")"
for field in .options .model_hash .plan .world .counts .wall_seconds .images_per_second .requests_per_second .tokens_per_second .bubble_share \
  .stages[0].busy_seconds .cuts[0].prefill_rows .cuts[0].prefill_payload_bytes .cuts[0].prefill_payload_bytes_without_pruning; do
  expect "run.json has $field" "$(jq "$field != null" "$work/cuts/run.json")" true
done
expect "counts" "$(jq -c '.counts|[.requests,.captions,.failed,.resumed,.images]' "$work/cuts/run.json")" "[10,10,0,0,10]"
expect "generated tokens" "$(jq .counts.generated_tokens "$work/cuts/run.json")" "$(jq -s 'map(.token_ids|length)|add' "$work/cuts/captions.jsonl")"
text=$(($(head -1 "$work/cuts/captions.jsonl" | jq .prompt_tokens) - 144))
"$LVPIPE" plan --model "$MODEL" --partition prune --text-tokens "$text" --json >"$work/plan.json"
expect "prefill bytes over each cut are the plan's times ten images" "$(jq -c '[.cuts[].prefill_payload_bytes]' "$work/cuts/run.json")" \
  "$(jq -c '[.cuts[].prefill_bytes * 10]' "$work/plan.json")"
expect "and so are those without pruning" "$(jq -c '[.cuts[].prefill_payload_bytes_without_pruning]' "$work/cuts/run.json")" \
  "$(jq -c '[.cuts[].dense_prefill_bytes * 10]' "$work/plan.json")"
expect "vision rows over each cut" "$(jq -c '[.cuts[].prefill_vision_rows]' "$work/cuts/run.json")" "[720,430,140]"
caption dense --input "$IMAGES" "${short[@]}" --partition "$(jq -r '.plan.first_blocks[1:]|join(",")' "$work/cuts/run.json")" --pruner none
expect "at most 10.1 % of an unpruned run's vision rows pass the last point" \
  "$(jq -s '.[0].cuts[-1].prefill_vision_rows <= 0.101 * .[1].cuts[-1].prefill_vision_rows' "$work/cuts/run.json" "$work/dense/run.json")" true
expect "an unpruned run sends what the report said it would" "$(jq -c '[.cuts[].prefill_payload_bytes]' "$work/dense/run.json")" \
  "$(jq -c '[.cuts[].prefill_payload_bytes_without_pruning]' "$work/cuts/run.json")"
finish
