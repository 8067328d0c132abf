#!/usr/bin/env bash
# Signals: the first one drains (what is under way is finished and written, exit 75), the second stops at once (128 + N),
# and either way the run resumes to the same bytes and nobody is left behind.
. "$(dirname "$0")/lib.sh"

SAMPLES=300
export LVPIPE_TEST_MARK=$work

many $SAMPLES
job=("$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --threads 1 --max-new-tokens 24)
"${job[@]}" --stages 2 -q --output "$work/calm" || fail "the calm run ended with $?"

begin() { # begin LAUNCHER... : starts the job in the background and waits until it captions
  rm -rf "$work/out"
  "$@" --output "$work/out" 2>"$work/stderr" &
  launcher=$!
  local i
  for ((i = 0; i < 100; i++)); do
    [[ -s $work/out/captions.jsonl ]] && return
    sleep 0.1
  done
  fail "the run does not begin" "$work/stderr"
}

ended() { # ended STATUS WHAT
  local status=0
  wait $launcher || status=$?
  expect "$2: status" "$status" "$1"
  nobody_left "$2"
  [[ -s $work/out/captions.jsonl && $(tail -c 2 "$work/out/captions.jsonl") == "}" ]] || fail "$2: a torn file"
  local rows
  rows=$(wc -l <"$work/out/captions.jsonl")
  ((rows < SAMPLES)) || fail "$2: all $rows samples were done: nothing was interrupted"
  "${job[@]}" --stages 2 -q --output "$work/out" 2>"$work/stderr" || fail "$2: resuming ended with $?" "$work/stderr"
  cmp -s "$work/calm/captions.jsonl" "$work/out/captions.jsonl" || fail "$2: other bytes after resuming"
  echo "$2: $rows rows before, the same bytes in the end"
}

for signal in TERM INT USR1; do
  begin "${job[@]}" --stages 2
  kill -$signal $launcher
  ended 75 "$signal to the launcher"
  expect "state" "$(jq -r .state "$work/out/status.json")" "done"
done

begin "${job[@]}" --stages 2
kill -TERM $launcher
sleep 0.02
kill -TERM $launcher
ended $((128 + 15)) "TERM twice"

begin "${job[@]}" --stages 2 --drain-seconds 0
kill -TERM $launcher
ended 75 "TERM with no time to drain"

# Under the user's own mpirun, USR1 drains.
begin mpirun --oversubscribe --host localhost:3 -n 3 "${job[@]}"
kill -USR1 $launcher
ended 75 "USR1 to mpirun"

# In a terminal, Ctrl-C goes to the whole foreground group: the ranks must not take it for theirs.
begin setsid --wait "${job[@]}" --stages 2
pid=$(pgrep -s "$(ps -o sid= -p "$(rank_pid 0)" | tr -d ' ')" -x lvpipe | head -n 1)
kill -INT -- "-$(ps -o pgid= -p "$pid" | tr -d ' ')"
ended 75 "INT to the foreground group"

# A launcher that is killed takes its ranks with it.
begin "${job[@]}" --stages 2
kill -KILL $launcher
ended 137 "KILL to the launcher"
finish
