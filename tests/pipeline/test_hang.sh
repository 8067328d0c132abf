#!/usr/bin/env bash
# A rank that hangs ends the run: it is named, every process goes, and the launcher starts again to the same bytes.
#
#   tests/pipeline/test_hang.sh [ROUNDS] [SEED] [SILENCE]     3 rounds; SILENCE is the seconds without a word that
#                                                              are waited for (6; users have 30)
. "$(dirname "$0")/lib.sh"

ROUNDS=${1:-3} RANDOM=${2:-1} SILENCE=${3:-6}
SAMPLES=200 STAGES=2
export LVPIPE_TEST_MARK=$work LVPIPE_SILENCE_SECONDS=$SILENCE

many $SAMPLES
job=("$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --stages $STAGES --threads 1 --max-new-tokens 24 -q)
"${job[@]}" --output "$work/calm" || fail "the calm run ended with $?"

for ((round = 1; round <= ROUNDS; round++)); do
  rm -rf "$work/out"
  victim=$(((RANDOM + round) % (STAGES + 1)))
  "${job[@]}" --output "$work/out" --max-restarts 0 2>"$work/stderr" &
  launcher=$!
  for ((i = 0; i < 100; i++)); do # until the work has begun
    [[ -s $work/out/captions.jsonl ]] && break
    sleep 0.1
  done
  sleep "0.$((RANDOM % 9 + 1))"
  pid=$(rank_pid $victim)
  kill -STOP "$pid" 2>/dev/null || fail "round $round: rank $victim is not there"
  began=$SECONDS
  wait $launcher
  expect "round $round: status" $? 4
  took=$((SECONDS - began))
  nobody_left "round $round"
  says "rank $victim ($(hostname)"
  says "no word for"
  expect "round $round: lines of error" "$(grep -c 'error: ' "$work/stderr")" 1
  ((took <= SILENCE + 30)) || fail "round $round: it took $took s"
  "${job[@]}" --output "$work/out" 2>"$work/stderr" || fail "round $round: resuming ended with $?" "$work/stderr"
  cmp -s "$work/calm/captions.jsonl" "$work/out/captions.jsonl" || fail "round $round: other bytes after rank $victim hung"
  echo "round $round: rank $victim stopped, named and gone after $took s, the same bytes in the end"
done
finish
