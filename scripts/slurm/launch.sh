#!/usr/bin/env bash
# Runs lvpipe over the nodes of a Slurm job, from a batch script:
#
#   scripts/slurm/launch.sh COMMAND [options]         e.g. launch.sh caption --model ... --input ... --output ...
#
# It starts one task more than there are workers (rank 0 coordinates), with the odd one on the first node, and gives the job
# back to the queue when it can go on later: after a drain (exit status 75: time limit, preemption) and after a lost rank.
#
#   WORKERS_PER_NODE   workers on each node (the job's --ntasks-per-node)
#   LVPIPE             the program (build/release/lvpipe of this checkout, else lvpipe in PATH)
#   MAX_REQUEUES       how often a job that loses ranks is given back to the queue (5)
set -uo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
lvpipe=${LVPIPE:-$home/build/release/lvpipe}
[[ -x $lvpipe ]] || lvpipe=$(command -v lvpipe) || { echo "launch.sh: no lvpipe; set LVPIPE to the program" >&2; exit 2; }
[[ -n ${SLURM_JOB_ID:-} ]] || { echo "launch.sh: not inside a Slurm job; submit it with sbatch" >&2; exit 2; }

# "4(x2)" is what Slurm says where every node has as many tasks.
per_node=${WORKERS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-${SLURM_TASKS_PER_NODE%%(*}}}
[[ $per_node =~ ^[0-9]+$ ]] || { echo "launch.sh: set --ntasks-per-node to the number of workers on a node" >&2; exit 2; }
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# Rank 0 first, then the workers node by node: stages that follow each other are neighbours. One line per task.
hosts=$(mktemp "${TMPDIR:-/tmp}/lvpipe-hosts.XXXXXX")
trap 'rm -f "$hosts"' EXIT
echo "${nodes[0]}" >"$hosts"
for node in "${nodes[@]}"; do for ((w = 0; w < per_node; w++)); do echo "$node" >>"$hosts"; done; done

options=(--mpi=pmix --ntasks="$(wc -l <"$hosts")" --nodes="${#nodes[@]}" --distribution=arbitrary
  --overcommit                    # the coordinator has no cores of its own: it sleeps most of the time
  --cpu-bind=none                 # workers of a node share its cores; lvpipe counts them
  --kill-on-bad-exit=0 --wait=15) # a lost rank: the others are killed after 15 s
[[ -n ${SLURM_GPUS_PER_NODE:-}${SLURM_JOB_GPUS:-} ]] && options+=(--gpu-bind=none) # lvpipe gives each worker a GPU
export HWLOC_COMPONENTS=${HWLOC_COMPONENTS:--gl} # hwloc would look for an X server

status=0
SLURM_HOSTFILE=$hosts srun "${options[@]}" "$lvpipe" "$@" || status=$?

# What came of it, where the options name an output folder.
output=
for ((i = 1; i <= $#; i++)); do
  [[ ${!i} == --output ]] && { j=$((i + 1)); output=${!j:-}; }
  [[ ${!i} == --output=* ]] && output=${!i#--output=}
done
((status != 0)) && [[ -n $output ]] && "$lvpipe" status "$output" >&2

# A drain is no failure; lost ranks are counted, over this job's restarts, in the output folder.
requeue=$((status == 75))
stopped=$((status == 130 || status == 138 || status == 143)) # by a second signal: somebody wants an end
if ((status >= 128 && !stopped)); then status=4; fi # srun says what the lost rank died of
if ((status == 4)) && [[ -n $output ]]; then
  echo "$SLURM_JOB_ID" >>"$output/.lvpipe/lost" && (($(grep -cx "$SLURM_JOB_ID" "$output/.lvpipe/lost") <= ${MAX_REQUEUES:-5})) && requeue=1
fi
if ((requeue)); then
  # Here the shell has had no TERM (it would have died of it): nobody cancelled the job.
  echo "launch.sh: exit status $status: giving the job back to the queue" >&2
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # which ends this script
fi
exit "$status"
