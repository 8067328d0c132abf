#!/usr/bin/env bash
# lvpipe eval on questions about the example images: scores, resuming, the tables, and questions that cannot be.
. "$(dirname "$0")/lib.sh"

mkdir "$work/tasks"
jq -c '{id, image: ("'"$IMAGES"'/" + .image), prompt: "Describe the image.", family: "caption", metric: "facts",
  answer: "The image shows a drum at top right.", answers: (.objects | map([.]))}' \
  "$IMAGES/manifest.jsonl" >"$work/tasks/questions.jsonl"
ask=("$LVPIPE" eval --model "$MODEL" --tasks "$work/tasks" --output "$work/scores" --pruner lvpruning,random --keep 0.5 --threads 1 -q)
run 0 "${ask[@]}"
cp "$work/stdout" "$work/table"
expect "settings" "$(jq -c '[.settings[].setting]' "$work/scores/eval.json")" '["none","lvpruning-0.5","random-0.5"]'
expect "questions" "$(jq -c '[.questions, .images]' "$work/scores/eval.json")" '[10,10]'
expect "unpruned captions are right for the most part" \
  "$(jq '.settings[0] | .families.caption.score.value > 0.75 and .unanswered == 0' "$work/scores/eval.json")" true
expect "the modules keep more than chance does" \
  "$(jq '[.settings[1:][].families.caption.score.value] | .[0] > .[1]' "$work/scores/eval.json")" true
expect "vision rows" "$(jq '.settings[1].vision_rows_share * 1000 | round' "$work/scores/eval.json")" 311
expect "log-probabilities" "$(jq '[.settings[].families.caption | .nll > 0 and .tokens > 50] | all' "$work/scores/eval.json")" true
expect "tokens" "$(jq -c '[.settings[].vision_tokens]' "$work/scores/eval.json")" '[[144],[144,72,43,14],[144,72,43,14]]'
expect "FLOPs: pruning saves some, modules cost some" \
  "$(jq '[.settings[].flops_per_question] | .[0] > .[1] and .[1] > .[2] and .[2] > 1e8' "$work/scores/eval.json")" true
cmp -s "$work/table" "$work/scores/eval.md" || fail "stdout is not eval.md"

cp "$work/scores/none/run.json" "$work/first.json"
run 0 "${ask[@]}" --json
cmp -s "$work/first.json" "$work/scores/none/run.json" || fail "asked again, it captions again"
expect "--json" "$(jq -S 'del(.settings[].questions_per_second)' "$work/stdout")" \
  "$(jq -S 'del(.settings[].questions_per_second)' "$work/scores/eval.json")"

# The answers that were scored belong to the run: others are another run.
cp "$work/tasks/questions.jsonl" "$work/kept"
jq -c '.answer = "The image is blurred."' "$work/kept" >"$work/tasks/questions.jsonl"
run 2 "${ask[@]}" && says "scores/none.nll ended with status 2"
cp "$work/kept" "$work/tasks/questions.jsonl"

# What changes the questions, and what is no option in full, never reaches caption; the own ones win.
run 0 "${ask[@]}" --limit=2 --output="$work/two" --pruner=random --no-nll --json
expect "--name=value" "$(jq -c '[.questions, [.settings[].setting]]' "$work/stdout")" '[2,["none","random-0.5"]]'
[[ $(tail -c 1 "$work/two/eval.json" | od -An -tx1 | tr -d ' ') == 0a ]] || fail "eval.json ends without a line end"
for option in --input=x --prompt=x --score=x --shard=0/2; do run 2 "${ask[@]}" "$option" && says "what is asked is in --tasks"; done
for option in --lim=1 --scor=answer --pruner-w=x --; do run 2 "${ask[@]}" "$option" && says "write options in full"; done
for option in --trace=x --metrics=x; do run 2 "${ask[@]}" "$option" && says "every run would overwrite the file"; done
run 2 "${ask[@]}" --json=1 && says "--json takes no value"
run 2 "${ask[@]}" --partition prune && says "no prune points to cut at"
run 2 mpirun -n 1 "${ask[@]}" && says "start it without mpirun"

# Every point's share; what caption has finished, with other ranks, is taken as it is.
"$LVPIPE" caption --model "$MODEL" --input "$work/tasks/questions.jsonl" --output "$work/by_hand/none" --pruner none --limit 2 --stages 2 --threads 1 -q
cp "$work/by_hand/none/run.json" "$work/first.json"
run 0 "${ask[@]}" --limit 2 --no-nll --output "$work/by_hand" --pruner random --keep 0.5/0.5/0.1 --json
expect "its own shares" "$(jq -c '.settings[1] | [.setting, .vision_tokens]' "$work/stdout")" '["random-0.5_0.5_0.1",[144,72,72,14]]'
cmp -s "$work/first.json" "$work/by_hand/none/run.json" || fail "what caption has finished is captioned again"

# Settings that cannot run are refused before the first run.
mkdir "$work/bare" && ln -s "$MODEL"/* "$work/bare" && rm "$work/bare/lvpruning.safetensors"
run 3 "${ask[@]}" --model "$work/bare" --output "$work/never" && says "has no lvpruning.safetensors"
run 2 "${ask[@]}" --pruner lvprunning --output "$work/never"
run 2 "${ask[@]}" --keep 0.5,none --output "$work/never"
run 2 "${ask[@]}" --keep 0.50000000000000000000000000000 --output "$work/never" && says "too long"
[[ ! -e $work/never ]] || fail "a run was begun all the same"

# A signal goes on to the run that is under way, and its status comes back.
LVPIPE_TEST_MARK=$work "${ask[@]}" --output "$work/ended" 2>"$work/stderr" >/dev/null &
eval_pid=$!
for ((i = 0; i < 300; i++)); do [[ -d $work/ended/none/.lvpipe ]] && break || sleep 0.1; done
kill -TERM $eval_pid
status=0
wait $eval_pid || status=$?
[[ $status == 75 || $status == 143 ]] || fail "status $status after TERM" "$work/stderr"
nobody_left "eval after TERM"

# Where no picture can be read there is nothing to score.
jq -c '.image = "nowhere.png"' "$work/kept" >"$work/tasks/questions.jsonl"
run 2 "${ask[@]}" --output "$work/nothing" && says "no question got an answer; $work/nothing/none/errors.jsonl"
cp "$work/kept" "$work/tasks/questions.jsonl"

run 2 "${ask[@]}" --stages 99 && says "lvpipe caption into"
run 2 "$LVPIPE" eval --model "$MODEL" --output "$work/x" && says "--tasks is missing"
echo '{"id": 1}' >"$work/tasks/questions.jsonl"
run 2 "${ask[@]}" && says "questions.jsonl, line 1: id: must be a string"
finish
