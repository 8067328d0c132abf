#!/usr/bin/env bash
# Damaged and hostile input: each gives the record or the status that the documentation names, the good samples beside it are
# captioned, and nothing hangs or crashes.
. "$(dirname "$0")/lib.sh"

short=(--max-new-tokens 6 --threads 1)
d=$work/in
mkdir "$d"
cp "$IMAGES/scene-0000.png" "$d/good.png"
cp "$IMAGES/scene-0002.jpg" "$d/good.jpg"
head -c -200 "$IMAGES/scene-0002.jpg" >"$d/cut.jpg"
head -c -200 "$IMAGES/scene-0000.png" >"$d/cut.png"
echo "just text" >"$d/text.jpg"
: >"$d/empty.png"
head -c 5000 /dev/urandom >"$d/noise.jpg"
cp "$IMAGES/scene-0000.png" "$d/png-named.jpg" # kind by content: no error
mkfifo "$d/pipe.jpg"
mkdir "$d/folder.png"
ln -s /dev/zero "$d/device.png"

{
  for name in good.png cut.jpg cut.png text.jpg empty.png noise.jpg png-named.jpg pipe.jpg folder.png device.png gone.jpg; do
    jq -nc --arg f "$name" '{image: $f}'
  done
  echo '{"image": "good.png", "id": '
  echo '[1, 2]'
  echo '{"id": "no image"}'
  echo '{"image": 7}'
  printf '{"image": "good.png", "id": "bad \xff\xfe utf8"}\n'
  jq -nc '{image: "good.jpg", id: "long", prompt: ("word " * 2000)}'
  jq -nc '{image: "good.jpg", id: "last"}'
} >"$d/rows.jsonl"

caption rows --input "$d/rows.jsonl" "${short[@]}" --stages 2
expect "good samples beside bad ones" "$(jq -r .id "$work/rows/captions.jsonl" | paste -sd' ')" "good.png png-named.jpg last"
error() { expect "the error of $1" "$(jq -r --arg i "$1" 'select(.id==$i).error' "$work/rows/errors.jsonl")" "$2"; }
error cut.jpg image_truncated
error cut.png image_truncated
error text.jpg not_an_image
error empty.png not_an_image
error noise.jpg not_an_image
error pipe.jpg not_an_image
error folder.png not_an_image
error device.png not_an_image
error gone.jpg file_missing
for line in 12 13 14 15 16; do error "line-$line" bad_manifest_line; done
error long prompt_too_long
expect "every sample is in one of the files" "$(cat "$work/rows/captions.jsonl" "$work/rows/errors.jsonl" | wc -l)" 18
expect "failed samples are counted" "$(jq -c '.counts|[.captions,.failed]' "$work/rows/run.json")" "[3,15]"
expect "every error says more than its code" "$(jq -c 'select((.message|length) < 8)' "$work/rows/errors.jsonl")" ""
caption large --input "$d/good.png" "${short[@]}" --max-pixels 1000
expect "--max-pixels" "$(jq -r .error "$work/large/errors.jsonl")" image_too_large

# --- input that ends the run before it starts
refused() { # refused STATUS TEXT INPUT OPTIONS...
  local status=$1 text=$2 input=$3
  shift 3
  run "$status" "$LVPIPE" caption --model "$MODEL" --input "$input" --output "$work/refused" "${short[@]}" "$@" && says "$text"
  [[ -e $work/refused/captions.jsonl ]] && fail "captions.jsonl was made for $input"
  rm -rf "$work/refused"
}
for i in 1 2; do jq -nc '{image: "good.png", id: "twice"}'; done >"$d/twice.jsonl"
refused 2 twice "$d/twice.jsonl"
refused 2 "neither a file nor a folder" "$d/pipe.jpg"
refused 2 nothing "$d/nothing.jsonl"
mkdir "$work/hollow"
refused 2 hollow "$work/hollow"
run 2 "$LVPIPE" caption --model "$MODEL" --input "$d/good.png" --output "$d/text.jpg" "${short[@]}" && says text.jpg
run 2 "$LVPIPE" caption --model "$MODEL" --input "$d/good.png" --output "$d/text.jpg/below" "${short[@]}" && says text.jpg
run 2 "$LVPIPE" caption --model "$MODEL" --input "$d/good.png" --output /proc/lvpipe "${short[@]}" && says /proc/lvpipe

# --- damaged models: always status 3, never a crash
model() { # model NAME: a copy whose files can be replaced
  rm -rf "$work/$1"
  mkdir "$work/$1"
  ln -s "$MODEL"/* "$work/$1"
}
replace() { # replace MODEL FILE < new contents
  rm -f "$work/$1/$2"
  cat >"$work/$1/$2"
}
unusable() { # unusable MODEL WHAT OPTIONS...
  local m=$1 what=$2
  shift 2
  run 3 "$LVPIPE" caption --model "$work/$m" --input "$d/good.png" --output "$work/refused" "${short[@]}" "$@" ||
    fail "(that was: $what)"
  [[ -s $work/stderr ]] || fail "$what: nothing is said"
  rm -rf "$work/refused"
}
size=$(stat -c %s "$MODEL/model.safetensors")
for n in 0 7 8 100 $((size / 2)) $((size - 1)); do
  model cut
  head -c "$n" "$MODEL/model.safetensors" | replace cut model.safetensors
  unusable cut "$n bytes of model.safetensors"
done
model huge_header
{ printf '\xff\xff\xff\xff\xff\xff\xff\x7f'; tail -c +9 "$MODEL/model.safetensors" | head -c 5000; } | replace huge_header model.safetensors
unusable huge_header "a header of 2^63 bytes"
model cut_pruner
head -c 3000 "$MODEL/lvpruning.safetensors" | replace cut_pruner lvpruning.safetensors
unusable cut_pruner "truncated pruner weights"
for change in '.text_config.hidden_size = -128' '.text_config.hidden_size = 1e15' '.text_config.num_hidden_layers = 2000000000' \
  '.text_config.num_hidden_layers = 0' '.text_config.vocab_size = 4294967297' '.text_config.num_attention_heads = 0' \
  '.text_config.num_attention_heads = 3' '.text_config.intermediate_size = "many"' '.vision_config.image_size = -1' \
  '.vision_config.image_size = 1000000' '.vision_config.patch_size = 0' '.vision_feature_layer = 99' \
  '.text_config.max_position_embeddings = -1' '.model_type = "bert"' 'del(.vision_config.hidden_size) | .vision_config.hidden_size = null' \
  '.text_config.rope_scaling = {"rope_type": "yarn", "factor": 4}' '.text_config = []' '[]'; do
  model odd
  jq "$change" "$MODEL/config.json" | replace odd config.json
  unusable odd "config.json with $change"
done
model no_json
head -c 300 "$MODEL/config.json" | replace no_json config.json
unusable no_json "half a config.json"
model no_config
rm "$work/no_config/config.json"
unusable no_config "no config.json"
model tokenizer
echo '{"version": "1.0", "model": {"type": "WordPiece", "vocab": {"a": 0}}}' | replace tokenizer tokenizer.json
rm -f "$work/tokenizer/tokenizer.model"
unusable tokenizer "a tokenizer of another kind"
model tokenizer
rm -f "$work/tokenizer/tokenizer.json"
head -c 1000 "$MODEL/tokenizer.model" | replace tokenizer tokenizer.model
unusable tokenizer "half a tokenizer.model"
model tokenizer
rm -f "$work"/tokenizer/tokenizer.{json,model}
unusable tokenizer "no tokenizer"
model template
rm -f "$work/template/chat_template.json"
echo '{% if unheard_of %}{{ messages }}{% endif %}' | replace template chat_template.jinja
unusable template "a template nobody knows" && says --raw-prompt
finish
