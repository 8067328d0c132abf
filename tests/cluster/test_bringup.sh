#!/usr/bin/env bash
# cluster.sh itself: MPI over two nodes with srun and mpirun, a job that requeues itself, a node cut off and restored, and that
# nothing is left afterwards, even when slurmctld was killed. Ends a cluster that is up.
set -uo pipefail
cluster=$(cd "$(dirname "$0")" && pwd)/cluster.sh
dir=${LVP_CLUSTER_DIR:-/var/tmp/lvp-cluster}

"$cluster" check || exit 77
command -v mpicc >/dev/null || { echo "skipped: mpicc is missing"; exit 77; }
work=$(mktemp -d /var/tmp/lvp_bringup_XXXXXX) # not /tmp, where a node sees only its own files
trap '"$cluster" down; rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

expect() { # expect WHAT ACTUAL EXPECTED
  if [[ $2 == "$3" ]]; then
    echo "ok: $1"
  else
    echo "FAILED: $1: '$2' instead of '$3'" >&2
    failures=$((failures + 1))
  fi
}

reaches() { "$cluster" exec n1 ping -c 1 -W 1 n2 >/dev/null && echo yes || echo no; }

running() { ip netns list | awk '$1 ~ /^lvp-/ { print $1 }' | while read -r space; do ip netns pids "$space"; done; }

cat >ring.c <<'END'
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rank, n, got;
    char host[64];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    gethostname(host, sizeof host);
    got = rank;
    MPI_Sendrecv_replace(&got, 1, MPI_INT, (rank + 1) % n, 0, (rank + n - 1) % n, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    printf("%s rank %d of %d after %d\n", host, rank, n, got);
    return MPI_Finalize();
}
END
cat >ring.sh <<'END'
#!/bin/sh
srun --mpi=pmix -n 4 ./ring >srun.out
mpirun ./ring >mpirun.out
END
cat >again.sh <<'END'
#!/bin/sh
echo "start ${SLURM_RESTART_COUNT:-0}"
test -n "$SLURM_RESTART_COUNT" && exit 0
scontrol requeue "$SLURM_JOB_ID"
exit 75
END
mpicc ring.c -o ring || exit 1

"$cluster" up 2 || { "$cluster" logs >&2; exit 1; }
eval "$("$cluster" env)"
expect "two nodes are idle after $SECONDS s" "$(sinfo -h -p low -o '%D %t')" "2 idle"

ring=$'n1 rank 0 of 4 after 3\nn1 rank 1 of 4 after 0\nn2 rank 2 of 4 after 1\nn2 rank 3 of 4 after 2'
sbatch --quiet --wait --nodes=2 --ntasks-per-node=2 --output=ring.log ring.sh
expect "a job on two nodes ends with 0" $? 0
expect "srun --mpi=pmix: four ranks in a ring over n1 and n2" "$(sort srun.out)" "$ring"
expect "mpirun: the same" "$(sort mpirun.out)" "$ring"

job=$(sbatch --parsable --open-mode=append --output=again.log again.sh)
expect "a job that requeues itself completes" "$("$cluster" wait "$job" 60)" COMPLETED
expect "it was started twice" "$(grep '^start' again.log | paste -sd' ')" "start 0 start 1"

expect "n1 reaches n2" "$(reaches)" yes
"$cluster" link n2 down
expect "not with n2's link down" "$(reaches)" no
"$cluster" link n2 up
expect "again with it up" "$(reaches)" yes

((failures == 0)) || "$cluster" logs >&2
processes=$(running)
expect "its processes are seen while it is up" "$([[ -n $processes ]] && echo yes)" yes
"$cluster" exec ctl bash -c 'kill -9 "$(cat "$0")"' "$dir/slurmctld.pid"
"$cluster" down
expect "down without slurmctld ends with 0" $? 0
# A zombie that process 1 has not reaped yet has no command line.
expect "no process is left" "$(for pid in $processes; do tr '\0' ' ' <"/proc/$pid/cmdline"; done 2>/dev/null)" ""
expect "no namespace is left" "$(ip netns list | grep lvp-)" ""
expect "no interface is left" "$(ip -o link | grep lvp)" ""
expect "no folder is left" "$(ls -d "$dir" 2>/dev/null)" ""
"$cluster" down
expect "down once more ends with 0" $? 0

((failures == 0)) || exit 1
echo "passed in $SECONDS s"
