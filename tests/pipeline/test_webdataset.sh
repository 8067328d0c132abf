#!/usr/bin/env bash
# Tar shards give what their images give: the same captions as the folder, by range, in any partition and any --shard;
# damage in a shard costs the samples it hits and no other.
. "$(dirname "$0")/lib.sh"

# Four shards with the ten examples in order, three to a shard; names and prompts beside them.
mkdir "$work/members" "$work/shards"
n=0
for image in "$IMAGES"/*.*; do
  [[ $image == *.jsonl ]] && continue
  key=$(printf %05d $n)
  cp "$image" "$work/members/$key.${image##*.}"
  printf '{"file":"%s","number":%d}' "$(basename "$image")" $n >"$work/members/$key.json"
  printf 'caption %d' $n >"$work/members/$key.txt"
  n=$((n + 1))
done
for ((s = 0; s < 4; s++)); do
  (cd "$work/members" && ls | awk -v s=$s 'int(substr($0, 1, 5) / 3) == s' |
    tar -cf "$work/shards/shard-000$s.tar" -T -)
done
pattern="$work/shards/shard-{0000..0003}.tar"

captions() { jq -c '[.caption, .token_ids, .vision_tokens]' "$work/$1/captions.jsonl"; }

caption folder --input "$work/members" --stages 1
caption tars --input "$pattern" --partition prune
cmp -s <(captions folder) <(captions tars) || fail "the shards' captions are not the folder's"
expect "ids" "$(jq -r .id "$work/tars/captions.jsonl")" \
  "$(for ((i = 0; i < n; i++)); do printf 'shard-%04d/%05d\n' $((i / 3)) $i; done)"
expect "image" "$(jq -r .image "$work/tars/captions.jsonl" | head -n 1)" "shard-0000/$(ls "$work/members" | grep -v -e json -e txt | head -n 1)"

# Columns: fields of .json, and .txt
caption columns --input "$pattern" --limit 4 --prompt 'Number {number} of {file} ({txt}): describe it. {id}'
expect "prompt" "$(jq -r .prompt "$work/columns/captions.jsonl" | tail -n 1)" \
  "Number 3 of $(jq -r .file "$work/members/00003.json") (caption 3): describe it. shard-0001/00003"

# An array of jobs over --shard is the one job.
for ((i = 0; i < 3; i++)); do caption "part$i" --input "$pattern" --shard $i/3; done
cmp -s <(cat "$work"/part?/captions.jsonl | sort) <(sort "$work/tars/captions.jsonl") || fail "the union of the shards is not the one job"

# One shard alone, and resuming on another partition.
caption one --input "$work/shards/shard-0001.tar"
cmp -s "$work/one/captions.jsonl" <(grep shard-0001 "$work/tars/captions.jsonl") || fail "one shard alone gives other rows"
caption grown --input "$pattern" --limit 4
caption grown --input "$pattern" --stages 2
same grown/captions.jsonl tars/captions.jsonl "resumed with a larger --limit"

# Damage: the first header of shard 1, shard 2 cut within its last image, an empty shard 3.
cp "$work"/shards/shard-000?.tar "$work"
printf 'XXXX' | dd of="$work/shard-0001.tar" bs=1 seek=150 conv=notrunc status=none
last=$(ls "$work/members" | grep '^00008' | head -n 1)
start=$(tar -tRf "$work/shard-0002.tar" | awk -v name="$last" '$3 == name {print 512 * (substr($2, 1, length($2) - 1) + 1)}')
truncate -s $((start + 700)) "$work/shard-0002.tar"
: >"$work/shard-0003.tar"
caption damaged --input "$work/shard-{0000..0003}.tar" --max-errors 100
expect "what damage costs" "$(jq -r '.id + " " + .error' "$work/damaged/errors.jsonl")" "shard-0001/offset-0 shard_damaged
shard-0001/00003 shard_damaged
shard-0002/00008 image_truncated
shard-0002/offset-$((start + 700)) shard_damaged
shard-0003/offset-0 shard_damaged"
grep -v -e /00003 -e /00008 -e /00009 "$work/tars/captions.jsonl" >"$work/left.jsonl"
same damaged/captions.jsonl left.jsonl "what damage leaves"

# Names as they come: long ones, blanks, another alphabet, bytes that are no text.
long=$(printf 'l%.0s' {1..180})
names=("$long/$long.png" "with blank.png" "$(printf '\303\251t\303\251').png" "$(printf 'byte\377').png")
mkdir -p "$work/odd/$long"
for name in "${names[@]}"; do cp "$IMAGES/scene-0000.png" "$work/odd/$name"; done
for format in gnu pax; do
  (cd "$work/odd" && tar --format=$format -cf "$work/odd-$format.tar" "${names[@]}")
  caption "odd-$format" --input "$work/odd-$format.tar"
  expect "odd names" "$(jq -r .image "$work/odd-$format/captions.jsonl")" "odd-$format/$long/$long.png
odd-$format/with blank.png
odd-$format/été.png
odd-$format/byte\xff.png"
done

# Refusals say what to do.
run 2 "$LVPIPE" caption --model "$MODEL" --input "$work/shards/shard-{0000..0004}.tar" --output "$work/x" && says "shard-0004.tar: No such file"
run 2 "$LVPIPE" caption --model "$MODEL" --input "$work/shards/shard-{3..1}.tar" --output "$work/x" && says "{0000..0099}"
gzip -k "$work/shards/shard-0000.tar" && mv "$work/shards/shard-0000.tar.gz" "$work/z.tar"
run 2 "$LVPIPE" caption --model "$MODEL" --input "$work/z.tar" --output "$work/x" && says "unpack"
tar -cf "$work/twice.tar" -C "$work/members" 00000.json 00001.json 00000.txt
run 2 "$LVPIPE" caption --model "$MODEL" --input "$work/twice.tar" --output "$work/x" && says "twice"
run 2 "$LVPIPE" caption --model "$MODEL" --input "$work/shards" --output "$work/x" && says "pattern"
finish
