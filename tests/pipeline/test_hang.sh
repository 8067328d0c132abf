#!/usr/bin/env bash
# A rank that hangs ends the run: it is named, every process goes, and the launcher starts again to the same bytes.
#
#   tests/pipeline/test_hang.sh [ROUNDS] [SEED] [SILENCE]     2 rounds, and one of a rank that hangs when the work is
#                                                              done; SILENCE is the seconds without a word that are
#                                                              waited for (6; users have 30)
. "$(dirname "$0")/lib.sh"

ROUNDS=${1:-2} RANDOM=${2:-1} SILENCE=${3:-6}
POISON=${POISON:-build/release/tests/libpoison.so}
SAMPLES=800 STAGES=2
export LVPIPE_TEST_MARK=$work LVPIPE_SILENCE_SECONDS=$SILENCE

many $SAMPLES
job=("$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --stages $STAGES --threads 1 --max-new-tokens 24 -q)
began=$SECONDS
"${job[@]}" --output "$work/calm" || fail "the calm run ended with $?"
calm=$((SECONDS - began + 1))

# ends_hung WHAT VICTIM: the launcher that was started last ends, blaming this rank, and a second start ends to the same bytes.
ends_hung() {
  local began=$SECONDS
  timeout $((calm + SILENCE + 30)) tail --pid=$launcher -f /dev/null || kill -KILL $launcher
  wait $launcher
  expect "$1: status" $? 4
  echo "$1: rank $2 stopped, gone after $((SECONDS - began)) s"
  nobody_left "$1"
  says "rank $2 ($(hostname)"
  expect "$1: lines of error" "$(grep -c 'error: ' "$work/stderr")" 1
  timeout $((calm + 120)) "${job[@]}" --output "$work/out" 2>"$work/again" || fail "$1: resuming ended with $?" "$work/again"
  same calm/captions.jsonl out/captions.jsonl "$1"
}

# in_the_midst LINES VICTIM: waits until this many captions are there; $pid is the victim's process.
in_the_midst() {
  pid=
  for ((i = 0; i < 50 * (calm + 30); i++)); do
    [[ -n $pid ]] || pid=$(rank_pid "$2")
    [[ -s $work/out/captions.jsonl ]] && (($(wc -l <"$work/out/captions.jsonl") >= $1)) && return
    sleep 0.02
  done
  fail "there were never $1 captions"
}

for ((round = 1; round <= ROUNDS; round++)); do
  rm -rf "$work/out"
  victim=$(((RANDOM + round) % (STAGES + 1))) lines=$((RANDOM % (SAMPLES / 4) + 1))
  "${job[@]}" --output "$work/out" --max-restarts 0 2>"$work/stderr" &
  launcher=$!
  in_the_midst $lines $victim
  kill -STOP "$pid" || fail "round $round: rank $victim is not there"
  ends_hung "round $round" $victim
  says "no word for"
done

rm -rf "$work/out"
POISON_ENDING=1 LD_PRELOAD=$(realpath "$POISON") "${job[@]}" --output "$work/out" --max-restarts 0 2>"$work/stderr" &
launcher=$!
ends_hung "the end" 1
says "hangs at its end"
finish
