#!/usr/bin/env bash
# The real batch scripts on a real Slurm, two and three nodes in network namespaces: whatever the cluster does to a job, it
# ends complete and with the bytes of an undisturbed run.
#
#   tests/cluster/test_slurm.sh [PREEMPTIONS] [CUTS] [SEED]     2 preemptions and 1 cut link, from seed 1
PREEMPTIONS=${1:-2} CUTS=${2:-1} RANDOM=${3:-1}
cluster=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/cluster.sh
"$cluster" check || exit 77
export TMPDIR=/var/tmp # nodes do not share /tmp
. "$(dirname "${BASH_SOURCE[0]}")/../pipeline/lib.sh"
trap '"$cluster" down; rm -rf "$work"' EXIT

many 600
export MODEL INPUT=$work/rows.jsonl OPTIONS="--max-new-tokens 24" LVPIPE_HOME=$PWD LVPIPE
run 0 "$LVPIPE" caption --model "$MODEL" --input "$INPUT" --output "$work/calm" $OPTIONS -q
LVP_CLUSTER_CONF=${LVP_CLUSTER_CONF:-} "$cluster" up 3 4 || fail "the cluster does not come up"
eval "$("$cluster" env)"

submit() { # submit SBATCH OUT OPTIONS...: prints the job's number
  OUTPUT=$work/$2 sbatch --parsable --cpus-per-task=1 --output="$work/log-%A_%a" "${@:3}" "scripts/slurm/$1"
}

state() { [[ $(jq -r .state "$work/$1/status.json" 2>/dev/null) == "$2" ]]; }

captioning() { # captioning OUT [ROWS]: waits until the job has written that many
  local i
  for ((i = 0; i < 600; i++)); do
    state "$1" running && (($(wc -l 2>/dev/null <"$work/$1/captions.jsonl" || echo 0) >= ${2:-1})) && return
    sleep 0.1
  done
  fail "the job does not caption into $1" "$work/log-${job}_4294967294"
}

complete() { # complete OUT JOB WHAT [SECONDS]: the job ends by itself, and nothing is missing
  local ended
  ended=$("$cluster" wait "$2" "${4:-120}")
  expect "$3: the job" "$ended" COMPLETED
  cmp -s "$work/calm/captions.jsonl" "$work/$1/captions.jsonl" || fail "$3: other bytes" "$work/log-$2_4294967294"
  [[ -s $work/$1/errors.jsonl ]] && fail "$3: samples failed" "$work/$1/errors.jsonl"
  rm -rf "${work:?}/$1"
}

restarts() { grep -c 'giving the job back' "$work/log-$1_4294967294"; }

echo "2 nodes x 2 workers, 5 tasks"
job=$(submit caption-cpu.sbatch plain)
"$cluster" wait "$job" 120 >/dev/null
expect "hosts of the ranks" "$(jq -r '[.stages[].host] | join(" ")' "$work/plain/run.json")" "n1 n1 n2 n2"
complete plain "$job" "undisturbed"

echo "a killed worker"
job=$(submit caption-cpu.sbatch killed)
captioning killed 50
"$cluster" exec n2 pkill -KILL -n lvpipe
complete killed "$job" "a killed worker"
expect "requeues after a killed worker" "$(restarts "$job")" 1
grep -q "rank [34] (n2, stage [23] of 4): lost" "$work/log-${job}_4294967294" ||
  fail "the killed rank is not named" "$work/log-${job}_4294967294"

echo "USR1 before the time limit"
job=$(submit caption-cpu.sbatch warned)
captioning warned 50
scancel --signal=USR1 "$job"
complete warned "$job" "USR1"
expect "requeues after USR1" "$(restarts "$job")" 1

for ((i = 1; i <= PREEMPTIONS; i++)); do
  job=$(submit caption-cpu.sbatch preempted)
  captioning preempted $((RANDOM % 300))
  if ((i % 2)); then
    what="scontrol requeue"
    scontrol requeue "$job"
  else
    what="preemption with grace"
    urgent=$(sbatch --parsable --partition=high --nodes=3 --exclusive --output=/dev/null --wrap='sleep 1')
    "$cluster" wait "$urgent" 60 >/dev/null
  fi
  complete preempted "$job" "$what" 180
  echo "preemption $i: $what: complete, the same bytes"
done

for ((i = 1; i <= CUTS; i++)); do
  job=$(submit caption-cpu.sbatch cut)
  captioning cut $((RANDOM % 300))
  node=$(jq -r '.host' "$work/cut/status.json") # rank 0's
  other=$(squeue -h -j "$job" -o %N | xargs scontrol show hostnames | grep -v "^$node$")
  "$cluster" link "$other" down
  began=$SECONDS
  for ((j = 0; j < 90; j++)); do
    state cut running || break
    sleep 1
  done
  took=$((SECONDS - began))
  ((took <= 90)) || fail "cut $i: it took more than 90 s to notice"
  lost=$(jq -r .error "$work/cut/status.json")
  [[ $lost == *"($other, stage"*"lost, no word for"* ]] || fail "cut $i: $other is not named: $lost"
  "$cluster" exec "$other" pgrep -x lvpipe >/dev/null && sleep 40
  "$cluster" exec "$other" pgrep -x lvpipe >/dev/null && fail "cut $i: a rank is left on the node that was cut off"
  complete cut "$job" "a link cut" 240
  "$cluster" link "$other" up
  echo "cut $i: $other named after $took s: complete, the same bytes"
done

echo "an array of 8 tasks over 4 tars"
mkdir "$work/members"
n=0
while read -r image; do
  cp "$image" "$work/members/$(printf %04d $n).${image##*.}"
  n=$((n + 1))
done < <(jq -r .image "$INPUT" | head -n 80)
for s in 0 1 2 3; do
  (cd "$work/members" && ls | awk -v s=$s 'int(substr($0, 1, 4) / 20) == s' | tar -cf "$work/shard-000$s.tar" -T -)
done
tars=$work/shard-{0000..0003}.tar
run 0 "$LVPIPE" caption --model "$MODEL" --input "$tars" --output "$work/one" $OPTIONS -q
# The script's GPUs are not there; everything else is as it stands.
sed -e '/gpus-per-node/d' scripts/slurm/array.sbatch >"$work/array.sbatch"
job=$(OUTPUT=$work/array INPUT=$tars sbatch --parsable --ntasks-per-node=1 --cpus-per-task=1 --output="$work/log-%A_%a" "$work/array.sbatch")
expect "the array" "$("$cluster" wait "$job" 180)" COMPLETED
cmp -s <(cat "$work"/array/*/captions.jsonl | sort) <(sort "$work/one/captions.jsonl") || fail "the union of the array's outputs is not the one job's"
expect "tasks that status shows" "$("$LVPIPE" status "$work/array" | awk '$2 == "done"' | wc -l)" 8
expect "their total" "$("$LVPIPE" status "$work/array" | awk '$1 == "total" { print $2, $3 }')" "80 0"
finish
