#!/usr/bin/env bash
# Ranks that wait must leave their cores alone: Open MPI would busy-wait, and steal from whoever computes. Rank 0 is stopped
# once every stage works, so that nothing is announced any more; the stages may then use less than 5 % of a core each.
. "$(dirname "$0")/lib.sh"

SECONDS_MEASURED=10
# far more work than is done before the stop
example_manifest | jq -c 'range(2000) as $n | .id += "/\($n)"' >"$work/rows.jsonl"
LVPIPE_TEST_MARK=$work "$LVPIPE" caption --model "$MODEL" --input "$work/rows.jsonl" --output "$work/out" --stages 3 --threads 1 -q \
  --max-new-tokens 64 --max-restarts 0 2>"$work/stderr" &
launcher=$!

ranks=()
find_ranks() { # processes of this very run, by rank
  local rank pid
  for rank in 0 1 2 3; do
    for pid in $(pgrep -x lvpipe); do
      tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "LVPIPE_TEST_MARK=$work" &&
        tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$rank" && ranks[rank]=$pid
    done
  done
}
for ((i = 0; i < 300; i++)); do
  [[ -s $work/out/captions.jsonl ]] && break
  sleep 0.1
done
find_ranks
if [[ ${#ranks[@]} -ne 4 ]]; then
  fail "4 ranks were expected, ${#ranks[@]} were found" "$work/stderr"
  kill "$launcher" 2>/dev/null
  finish
fi
stop_all() {
  kill -CONT "${ranks[0]}" 2>/dev/null
  kill -KILL "${ranks[@]}" 2>/dev/null
  wait "$launcher" 2>/dev/null
}

ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; } # user and system time; the name in field 2 holds no blank
hertz=$(getconf CLK_TCK)

# idle LIMIT STOPPED WHAT: with that rank stopped, every other may use less than LIMIT % of a core.
idle() {
  local limit=$1 stopped=$2 what=$3 r percent
  local -a before
  kill -STOP "${ranks[stopped]}"
  sleep 2 # what was announced is finished by then
  for r in 0 1 2 3; do before[r]=$(ticks "${ranks[r]}"); done
  sleep "$SECONDS_MEASURED"
  for r in 0 1 2 3; do
    percent=$(awk -v t=$(($(ticks "${ranks[r]}") - before[r])) -v h="$hertz" -v s="$SECONDS_MEASURED" 'BEGIN {printf "%.1f", 100 * t / h / s}')
    ((r == stopped)) || echo "rank $r, $what: $percent % of a core"
    awk -v p="$percent" -v l="$limit" 'BEGIN {exit !(p < l)}' || fail "rank $r, $what, uses $percent % of a core while it waits"
  done
  kill -CONT "${ranks[stopped]}"
}

idle 5 0 "nothing announced"
rows=$(wc -l <"$work/out/captions.jsonl")
for ((i = 0; i < 300; i++)); do # answers of 64 tokens take seconds on a slow machine, and all in flight end together
  (($(wc -l <"$work/out/captions.jsonl") > rows)) && break
  sleep 0.1
done
(($(wc -l <"$work/out/captions.jsonl") > rows)) || fail "the run does not go on within 30 s of the coordinator's pause"
# A stage that is late: the one before it waits with its rows in hand, the one behind it and rank 0 for work that is announced.
idle 15 2 "a stage is late"
stop_all
finish
