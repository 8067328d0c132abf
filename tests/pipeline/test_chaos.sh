#!/usr/bin/env bash
# Nothing is lost: a run in which a random rank, or the launcher, is killed at a random moment, and which is then resumed,
# ends with the bytes of a run that nobody disturbed.
#
#   tests/pipeline/test_chaos.sh [ROUNDS] [SEED]      10 rounds from seed 1; a seed gives the same rounds again
. "$(dirname "$0")/lib.sh"

ROUNDS=${1:-10} RANDOM=${2:-1} # bash's RANDOM: assigning seeds it
SAMPLES=200 STAGES=2
export LVPIPE_TEST_MARK=$work

many $SAMPLES
job=("$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --stages $STAGES --threads 1 --max-new-tokens 24 -q)
started=$(date +%s%N)
"${job[@]}" --output "$work/calm" || fail "the calm run ended with $?"
took=$((($(date +%s%N) - started) / 1000000)) # ms
expect "rows of the calm run" "$(wc -l <"$work/calm/captions.jsonl")" $SAMPLES

for ((round = 1; round <= ROUNDS; round++)); do
  rm -rf "$work/out"
  victim=$((RANDOM % (STAGES + 2))) # the last one is the launcher
  after=$((RANDOM % took)) restarts=$((RANDOM % 2))
  "${job[@]}" --output "$work/out" --max-restarts $restarts 2>"$work/stderr" &
  launcher=$!
  sleep "$((after / 1000)).$(printf %03d $((after % 1000)))"
  if ((victim > STAGES)); then
    what=launcher
    kill -KILL $launcher 2>/dev/null
  else
    what="rank $victim"
    pid=$(rank_pid "$victim")
    [[ -n $pid ]] && kill -KILL "$pid" 2>/dev/null
  fi
  wait $launcher 2>/dev/null
  status=$?
  nobody_left "round $round"
  before=$(wc -l 2>/dev/null <"$work/out/captions.jsonl" || echo 0)
  "${job[@]}" --output "$work/out" 2>"$work/stderr" || fail "round $round: resuming ended with $?" "$work/stderr"
  cmp -s "$work/calm/captions.jsonl" "$work/out/captions.jsonl" || fail "round $round: other bytes after killing the $what"
  [[ -s $work/out/errors.jsonl ]] && fail "round $round: samples failed" "$work/out/errors.jsonl"
  echo "round $round: $what killed after $after ms (status $status, $before rows), the same bytes in the end"
done
finish
