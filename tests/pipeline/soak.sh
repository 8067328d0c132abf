#!/usr/bin/env bash
# A long run leaks nothing: over its second half the memory of no rank grows by 1 %, and none holds more files. Not part of
# ctest: it takes minutes.
#
#   tests/pipeline/soak.sh [SAMPLES]       10000
. "$(dirname "$0")/lib.sh"

SAMPLES=${1:-10000} STAGES=2
export LVPIPE_TEST_MARK=$work
many "$SAMPLES"
"$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --output "$work/out" --stages $STAGES -q --max-new-tokens 16 \
  --max-restarts 0 2>"$work/stderr" &
launcher=$!
while [[ ! -s $work/out/captions.jsonl ]] && kill -0 $launcher 2>/dev/null; do sleep 0.1; done
for ((r = 0; r <= STAGES; r++)); do pids[r]=$(rank_pid $r); done

while kill -0 $launcher 2>/dev/null; do
  rows=$(wc -l <"$work/out/captions.jsonl")
  for ((r = 0; r <= STAGES; r++)); do
    memory=$(awk '/^VmRSS/ { print $2 }' "/proc/${pids[r]}/status" 2>/dev/null) || continue
    files=$(ls "/proc/${pids[r]}/fd" 2>/dev/null | wc -l)
    [[ -n $memory ]] && echo "$r $rows $memory $files"
  done >>"$work/seen"
  sleep 0.5
done
wait $launcher || fail "the run ended with $?" "$work/stderr"
expect "rows" "$(wc -l <"$work/out/captions.jsonl")" "$SAMPLES"

# The mean memory of the third and of the last quarter of the samples; the fewest files, since an image is open for a moment.
for ((r = 0; r <= STAGES; r++)); do
  awk -v r=$r -v n="$SAMPLES" '
    $1 == r && $2 > n * 0.5 && $2 <= n * 0.75 { a += $3; m++; fa = m == 1 || $4 < fa ? $4 : fa }
    $1 == r && $2 > n * 0.75 && $2 < n * 0.99 { b += $3; k++; fb = k == 1 || $4 < fb ? $4 : fb }
    END {
      if (m == 0 || k == 0) { print "too few looks"; exit 1 }
      growth = 100 * (b / k - a / m) / (a / m)
      printf "rank %d: %.1f MB, %+.2f %% from the third to the last quarter; %d and %d files\n", r, b / k / 1024, growth, fa, fb
      exit !(growth < 1 && fb <= fa)
    }' "$work/seen" || fail "rank $r grows"
done
finish
