#!/usr/bin/env bash
# What goes wrong around a run: full and read-only disks, shards that vanish, broken images, duplicate ids, two jobs on one
# folder, a sample that crashes its rank, an input whose paths are all wrong. Nothing is lost, and the error says what to do.
. "$(dirname "$0")/lib.sh"

export LVPIPE_TEST_MARK=$work
POISON=${POISON:-build/release/tests/libpoison.so}
many 200
job=("$LVPIPE" caption --model "$MODEL" --threads 1 --max-new-tokens 24 -q)
run 0 "${job[@]}" --input "$work/rows.jsonl" --output "$work/calm"

wait_for_rows() { # wait_for_rows OUT
  local i
  for ((i = 0; i < 100; i++)); do
    [[ -s $work/$1/captions.jsonl ]] && return
    sleep 0.1
  done
  fail "no rows in $1" "$work/stderr"
}

echo "disk full"
mkdir "$work/small"
if mount -t tmpfs -o size=64k tmpfs "$work/small" 2>/dev/null; then
  trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
  run 6 "${job[@]}" --input "$work/rows.jsonl" --output "$work/small/out" && says "No space left on device"
  mount -o remount,size=4m "$work/small"
  run 0 "${job[@]}" --input "$work/rows.jsonl" --output "$work/small/out"
  same calm/captions.jsonl small/out/captions.jsonl "after the disk was full"

  echo "read-only output"
  rm -rf "$work/small/out"
  mount -o remount,ro "$work/small"
  run 2 "${job[@]}" --input "$work/rows.jsonl" --output "$work/small/out" && says "Read-only file system"
else
  echo "  skipped: mounting needs root"
fi

echo "two jobs on one folder"
"${job[@]}" --input "$work/rows.jsonl" --output "$work/twice" 2>"$work/first" &
first=$!
wait_for_rows twice
run 2 "${job[@]}" --input "$work/rows.jsonl" --output "$work/twice" && says "another run is writing there"
wait $first || fail "the first of two jobs ended with $?" "$work/first"
same calm/captions.jsonl twice/captions.jsonl "two jobs"

echo "a lock that a job of another host left behind"
foreign() { # foreign OUT: the lock of a job on another host
  mkdir -p "$work/$1/.lvpipe"
  echo "0123456789abcdef0123456789abcdef 4242 elsewhere slurm job 99" >"$work/lock" # never half of it in its place
  mv "$work/lock" "$work/$1/.lvpipe/lock"
}
beat() { echo "$2 $(date +%s)" >"$work/$1/.lvpipe/beat-0123456789abcdef0123456789abcdef"; }
foreign left
run 0 "${job[@]}" --input "$work/rows.jsonl" --output "$work/left" --limit 5
echo "  and one that lives"
foreign lives
beat lives 0
( for ((b = 1; b < 60; b++)); do
    beat lives $b
    sleep 0.5
  done ) &
beating=$!
run 2 "${job[@]}" --input "$work/rows.jsonl" --output "$work/lives" --limit 5 && says "slurm job 99 on elsewhere"
kill $beating 2>/dev/null
wait $beating 2>/dev/null

echo "a folder that is taken over while a job writes"
"${job[@]}" --input "$work/rows.jsonl" --output "$work/taken" --max-restarts 0 2>"$work/stderr" &
taken=$!
wait_for_rows taken
foreign taken
wait $taken
expect "status of the job that lost its folder" $? 6
says "was taken over by slurm job 99 on elsewhere"

echo "a shard that vanishes"
mkdir "$work/members"
n=0
for copy in {00..19}; do for image in "$IMAGES"/*.jpg "$IMAGES"/*.png; do cp "$image" "$work/members/$(printf %04d $n).${image##*.}"; n=$((n + 1)); done; done
tar -cf "$work/s-0.tar" -C "$work/members" . && rm -r "$work/members"
run 0 "${job[@]}" --input "$work/s-0.tar" --output "$work/whole"
"${job[@]}" --input "$work/s-0.tar" --output "$work/vanished" 2>"$work/stderr" &
job_pid=$!
wait_for_rows vanished
mv "$work/s-0.tar" "$work/elsewhere"
wait $job_pid
expect "status when a shard vanishes" $? 6
says "resume when it is back"
[[ -s $work/vanished/errors.jsonl ]] && fail "a shard that vanished made error records"
truncate -s +512 "$work/elsewhere" # another file by that name
cp "$work/elsewhere" "$work/s-0.tar" && truncate -s -512 "$work/s-0.tar"
run 0 "${job[@]}" --input "$work/s-0.tar" --output "$work/vanished"
same whole/captions.jsonl vanished/captions.jsonl "after a shard vanished"

echo "10 % broken images, and duplicate ids"
mkdir "$work/mixed"
n=0
for copy in {00..09}; do for image in "$IMAGES"/*.jpg "$IMAGES"/*.png; do
  to=$work/mixed/$(printf %04d $n).${image##*.}
  if ((n % 10 == 3)); then head -c $((RANDOM % 400)) "$image" >"$to"; else cp "$image" "$to"; fi
  n=$((n + 1))
done; done
run 0 "${job[@]}" --input "$work/mixed" --output "$work/broken"
expect "captions beside broken images" "$(wc -l <"$work/broken/captions.jsonl")" $((n - (n + 6) / 10))
expect "error records" "$(wc -l <"$work/broken/errors.jsonl")" $(((n + 6) / 10))
run 5 "${job[@]}" --input "$work/mixed" --output "$work/few" --max-errors 3 && says "--max-errors allows 3"
{ cat "$work/rows.jsonl"; head -n 1 "$work/rows.jsonl"; } >"$work/dup.jsonl"
run 2 "${job[@]}" --input "$work/dup.jsonl" --output "$work/dup" && says "line 1 and line 201"

echo "every path wrong"
jq -c '.image = "/nowhere/" + .image' "$work/rows.jsonl" >"$work/wrong.jsonl"
run 5 "${job[@]}" --input "$work/wrong.jsonl" --output "$work/wrong" && says "the first 100 samples have all failed"
cp "$work/rows.jsonl" "$work/wrong.jsonl" # mended: the ids and prompts are the same, the images are not
run 0 "${job[@]}" --input "$work/wrong.jsonl" --output "$work/wrong" --retry-failed
same calm/captions.jsonl wrong/captions.jsonl "mended paths"
jq -c '.id = "other/" + .id' "$work/rows.jsonl" >"$work/wrong.jsonl"
run 2 "${job[@]}" --input "$work/wrong.jsonl" --output "$work/wrong" && says "other requests"

echo "a sample that crashes its rank"
head -n 20 "$work/rows.jsonl" >"$work/poison.jsonl"
jq -nc --arg d "$PWD/tests/golden/images" '{id: "poison", image: ($d + "/jpeg_20000x1.jpg")}' >>"$work/poison.jsonl"
sed -n 21,40p "$work/rows.jsonl" >>"$work/poison.jsonl"
LD_PRELOAD=$(realpath "$POISON") run 0 "${job[@]}" --input "$work/poison.jsonl" --output "$work/poison" --max-restarts 0
expect "captions beside a crash" "$(wc -l <"$work/poison/captions.jsonl")" 40
expect "the record of the crash" "$(jq -r '[.id, .error, .attempts] | join(" ")' "$work/poison/errors.jsonl")" "poison crashed 3"
cmp -s "$work/poison/captions.jsonl" <(head -n 40 "$work/calm/captions.jsonl") || fail "a crash changed other captions"
expect "crashes told" "$(grep -c 'crashed (Segmentation fault) while decoding an image' "$work/stderr")" 3
run 0 "${job[@]}" --input "$work/poison.jsonl" --output "$work/poison" --retry-failed # the bug is mended
expect "captions after a retry" "$(wc -l <"$work/poison/captions.jsonl")" 41
echo "  with several prompts, and --overwrite over the restarts"
LD_PRELOAD=$(realpath "$POISON") run 0 "${job[@]}" --input "$work/poison.jsonl" --output "$work/poison" --overwrite \
  --prompt 'One?' --prompt 'Two?' --prompt 'Three?'
expect "records of one sample's crash" "$(jq -r '[.id, .error, .attempts] | join(" ")' "$work/poison/errors.jsonl" | tr '\n' ',')" \
  "poison#0 crashed 3,poison#1 crashed 3,poison#2 crashed 3,"
expect "captions beside it" "$(wc -l <"$work/poison/captions.jsonl")" 120
echo "  nothing but crashes"
jq -nc --arg d "$PWD/tests/golden/images" 'range(30) | {id: "p\(.)", image: ($d + "/jpeg_20000x1.jpg")}' >"$work/all.jsonl"
LD_PRELOAD=$(realpath "$POISON") run 4 "${job[@]}" --input "$work/all.jsonl" --output "$work/all" --max-restarts 0

echo "--overwrite is done once, however often a run is restarted"
run 0 "${job[@]}" --input "$work/rows.jsonl" --output "$work/over" --limit 5
"${job[@]}" --input "$work/rows.jsonl" --output "$work/over" --overwrite 2>"$work/stderr" &
over=$!
for ((i = 0; i < 100; i++)); do (($(wc -l 2>/dev/null <"$work/over/captions.jsonl" || echo 0) > 50)) && break; sleep 0.1; done
kill -KILL "$(rank_pid 1)"
wait $over || fail "an overwriting run that lost a rank ended with $?" "$work/stderr"
(($(jq .counts.resumed "$work/over/run.json") > 50)) || fail "a restart began anew: $(jq -c .counts "$work/over/run.json")"
same calm/captions.jsonl over/captions.jsonl "overwritten and restarted"

echo "many bad rows between good ones"
jq -c 'range(4) as $k | . as $row | .id += "/\($k)" | if $k > 0 then del(.prompt) else .word = "x" end' "$work/rows.jsonl" >"$work/bad_rows.jsonl"
run 0 "${job[@]}" --input "$work/bad_rows.jsonl" --output "$work/bad_rows" --prompt '{word}: what is it?'
expect "captions between bad rows" "$(wc -l <"$work/bad_rows/captions.jsonl")" 200

echo "an output that stalls for longer than ranks wait"
if truncate -s 64M "$work/disk" && mkfs.ext4 -q "$work/disk" 2>/dev/null && mkdir "$work/slow" && mount -o loop "$work/disk" "$work/slow" 2>/dev/null; then
  trap 'fsfreeze -u "$work/slow" 2>/dev/null; umount "$work/small" "$work/slow" 2>/dev/null; rm -rf "$work"' EXIT
  LVPIPE_SILENCE_SECONDS=5 "${job[@]}" --input "$work/rows.jsonl" --output "$work/slow/out" --max-restarts 0 2>"$work/stderr" &
  slow=$!
  wait_for_rows slow/out
  fsfreeze -f "$work/slow" && sleep 12 && fsfreeze -u "$work/slow"
  wait $slow || fail "a run over a disk that stalled ended with $?" "$work/stderr"
  same calm/captions.jsonl slow/out/captions.jsonl "after a stall"
  umount "$work/slow"
else
  echo "  skipped: loop devices need root"
fi
finish
