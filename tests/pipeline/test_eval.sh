#!/usr/bin/env bash
# lvpipe eval on questions about the example images: scores, resuming, the tables, and questions that cannot be.
. "$(dirname "$0")/lib.sh"

mkdir "$work/tasks"
jq -c '{id, image: ("'"$IMAGES"'/" + .image), prompt: "Describe the image.", family: "caption", metric: "facts",
  answer: "The image shows a large red circle.", answers: (.objects | map(split(" ") | [.[1], .[0]]))}' \
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
cmp -s "$work/table" "$work/scores/eval.md" || fail "stdout is not eval.md"

cp "$work/scores/none/run.json" "$work/first.json"
run 0 "${ask[@]}" --json
cmp -s "$work/first.json" "$work/scores/none/run.json" || fail "asked again, it captions again"
expect "--json" "$(jq -S 'del(.settings[].images_per_second)' "$work/stdout")" \
  "$(jq -S 'del(.settings[].images_per_second)' "$work/scores/eval.json")"

run 2 "${ask[@]}" --stages 99 && says "lvpipe caption into"
run 2 "$LVPIPE" eval --model "$MODEL" --output "$work/x" && says "--tasks is missing"
echo '{"id": 1}' >"$work/tasks/questions.jsonl"
run 2 "${ask[@]}" && says "questions.jsonl, line 1: id: must be a string"
finish
