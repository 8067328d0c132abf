#!/usr/bin/env bash
# A rank that hangs ends the run: it is named, every process goes, and the launcher starts again to the same bytes.
#
#   tests/pipeline/test_hang.sh [ROUNDS] [SEED] [SILENCE]     3 rounds, and one of a rank that hangs when the work is
#                                                              done; SILENCE is the seconds without a word that are
#                                                              waited for (6; users have 30)
. "$(dirname "$0")/lib.sh"

ROUNDS=${1:-3} RANDOM=${2:-1} SILENCE=${3:-6}
POISON=${POISON:-build/release/tests/libpoison.so}
SAMPLES=400 STAGES=2
export LVPIPE_TEST_MARK=$work LVPIPE_SILENCE_SECONDS=$SILENCE

many $SAMPLES
job=("$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --stages $STAGES --threads 1 --max-new-tokens 24 -q)
"${job[@]}" --output "$work/calm" || fail "the calm run ended with $?"

# ends_hung WHAT VICTIM: the launcher that was started last ends, blaming this rank, and a second start ends to the same bytes.
ends_hung() {
  local began=$SECONDS
  timeout $((SILENCE + 30)) tail --pid=$launcher -f /dev/null || kill -KILL $launcher
  wait $launcher
  expect "$1: status" $? 4
  echo "$1: rank $2 stopped, gone after $((SECONDS - began)) s"
  nobody_left "$1"
  says "rank $2 ($(hostname)"
  expect "$1: lines of error" "$(grep -c 'error: ' "$work/stderr")" 1
  timeout 120 "${job[@]}" --output "$work/out" 2>"$work/again" || fail "$1: resuming ended with $?" "$work/again"
  same calm/captions.jsonl out/captions.jsonl "$1"
}

for ((round = 1; round <= ROUNDS; round++)); do
  rm -rf "$work/out"
  victim=$(((RANDOM + round) % (STAGES + 1))) lines=$((RANDOM % (SAMPLES / 2) + 1))
  "${job[@]}" --output "$work/out" --max-restarts 0 2>"$work/stderr" &
  launcher=$!
  for ((i = 0; i < 2000; i++)); do # until it is in the midst of the work
    [[ -f $work/out/captions.jsonl ]] && (($(wc -l <"$work/out/captions.jsonl") >= lines)) && break
    sleep 0.02
  done
  kill -STOP "$(rank_pid $victim)" 2>/dev/null || fail "round $round: rank $victim is not there"
  ends_hung "round $round" $victim
  says "no word for"
done

rm -rf "$work/out"
POISON_ENDING=1 LD_PRELOAD=$(realpath "$POISON") "${job[@]}" --output "$work/out" --max-restarts 0 2>"$work/stderr" &
launcher=$!
ends_hung "the end" 1
finish
