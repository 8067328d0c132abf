#!/usr/bin/env bash
# Samples that follow each other with the same image: it is prepared and encoded once, and nothing else is different.
. "$(dirname "$0")/lib.sh"

questions=("What is at center?" "Is there a drum?" "What color is the sign?" "What does the sign say?" "Describe the image.")
ask() { jq -nc --arg id "$1" --arg image "$2" --arg prompt "$3" '{$id, $image, $prompt}'; }
for ((i = 1; i <= 4; i++)); do
  for ((q = 0; q < 5; q++)); do ask "$i-$q" "$(echo "$IMAGES/scene-000$i".*)" "${questions[q]}"; done
done >"$work/together.jsonl"
shuf --random-source=<(yes) "$work/together.jsonl" >"$work/apart.jsonl"
common=(--dtype bf16 --max-new-tokens 12 --logprobs)

images() { jq .counts.images "$work/$1/run.json"; } # that were encoded
caption apart --input "$work/apart.jsonl" "${common[@]}"
[[ $(images apart) -gt 12 ]] || fail "the questions were not mixed"
sort "$work/apart/captions.jsonl" >"$work/expected"
for how in "--stages 1" "--stages 3 --batch-tokens 1" "--stages 2 --replicas 2"; do
  # shellcheck disable=SC2086
  caption together --input "$work/together.jsonl" "${common[@]}" $how --overwrite
  expect "$how: images" "$(images together)" 4
  sort "$work/together/captions.jsonl" >"$work/found"
  same expected found "$how: beside each other and apart"
done
expect "order" "$(jq -r .id "$work/together/captions.jsonl" | paste -sd' ')" "$(jq -r .id "$work/together.jsonl" | paste -sd' ')"

# Every question of an image that cannot be read is an error of its own; the others do not notice. Once it is there, only
# its questions are asked.
cp -r "$IMAGES" "$work/images"
mv "$work/images/scene-0002.jpg" "$work/aside.jpg"
sed "s|$IMAGES|$work/images|" "$work/together.jsonl" >"$work/missing.jsonl"
caption missing --input "$work/missing.jsonl" "${common[@]}"
expect "missing: rows" "$(jq -r .error "$work/missing/errors.jsonl" | sort | uniq -c | tr -s ' ')" " 5 file_missing"
mv "$work/aside.jpg" "$work/images/scene-0002.jpg"
caption missing --input "$work/missing.jsonl" "${common[@]}" --retry-failed
expect "there again: images" "$(images missing)" 1
sed "s|$work/images|$IMAGES|" "$work/missing/captions.jsonl" | sort >"$work/found"
same expected found "there again"

# A bad line between two questions, several prompts of each, and more questions than go together.
{ head -n 2 "$work/together.jsonl"; echo '{"id": 7'; sed -n '3,5p' "$work/together.jsonl"; } >"$work/line.jsonl"
caption line --input "$work/line.jsonl" "${common[@]}"
expect "bad line: images, captions" "$(jq -c '[.counts.images, .counts.captions, .counts.failed]' "$work/line/run.json")" '[2,5,1]'
caption prompts --input "$work/together.jsonl" "${common[@]}" --prompt "{prompt}" --prompt "Describe the image."
expect "two prompts: images, captions" "$(jq -c '[.counts.images, .counts.captions]' "$work/prompts/run.json")" '[4,40]'
for ((i = 0; i < 150; i++)); do ask "many-$i" "$IMAGES/scene-0001.png" "${questions[i % 5]}"; done >"$work/many.jsonl"
caption many --input "$work/many.jsonl" "${common[@]}"
expect "many: images, captions" "$(jq -c '[.counts.images, .counts.captions]' "$work/many/run.json")" '[5,150]'
expect "many: answers" "$(jq -c 'del(.id)' "$work/many/captions.jsonl" | sort -u | wc -l)" 5
finish
