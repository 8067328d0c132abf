#!/usr/bin/env bash
# A small Slurm cluster on this machine, for tests: every node is a network namespace with its own hostname, processes, /tmp
# and /dev/shm; the rest of the file system is shared. Needs root; jobs run as root.
#
#   cluster.sh up [N [CPUS]]           starts nodes n1..nN (2), each announcing CPUS (4); ends an older cluster first
#   cluster.sh down                    ends every process of it and removes all that it made, also after an `up` that failed
#   cluster.sh env                     lines for eval: sbatch, squeue, scontrol and scancel then work on the host
#   cluster.sh exec NODE COMMAND...    runs a command on a node, which sees its own processes only, or on slurmctld's, ctl
#   cluster.sh link NODE up|down       cuts a node off: packets vanish without an error, as behind a dead switch
#   cluster.sh rate NODE RATE|off      limits its link, 1gbit or 100mbit, in both directions
#   cluster.sh wait JOB [SECONDS]      waits (600) until a job has ended and prints its state; status 0: COMPLETED, 1: another,
#                                      124: too late. A job that was requeued is started at once
#   cluster.sh logs [LINES]            the end of every daemon's log
#   cluster.sh check                   0 when this machine can do all that, else says what is missing, with status 77
#   cluster.sh packages                the Debian packages that it needs (apt-get install --no-install-recommends)
#
# LVP_CLUSTER_DIR    holds configuration, state and logs (/var/tmp/lvp-cluster); not below /tmp, which nodes do not share
# LVP_CLUSTER_CONF   more lines for slurm.conf, which win over those below; $'KillWait=30\nRequeueExit=75'
#
#   tests/cluster/cluster.sh up 2 && eval "$(tests/cluster/cluster.sh env)"
#   sbatch --nodes=2 job.sh            # in it, `srun --mpi=pmix ...` and `mpirun ...`
#
# Programs, scripts and output of a job belong outside /tmp; this repository is visible to all nodes even there. srun and salloc
# are for nodes, which can be reached by name: `cluster.sh exec n1 srun ...`.
set -euo pipefail

dir=${LVP_CLUSTER_DIR:-/var/tmp/lvp-cluster}
conf=$dir/slurm.conf
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
net=10.98.0 # nI is $net.I
# openmpi-bin brings libpmix, which Slurm's pmix plugin loads.
packages=(slurm-wlm munge openmpi-bin iproute2 iputils-ping)
PATH=$PATH:/usr/sbin:/sbin

say() { echo "cluster.sh: $*" >&2; }
die() { say "$@"; exit 1; }
slurm() { SLURM_CONF=$conf timeout 30 "$@"; }
spaces() { ip netns list 2>/dev/null | awk '$1 ~ /^lvp-(ctl|n[0-9]+|probe)$/ { print $1 }'; }

poll() { # poll SECONDS COMMAND...: until it succeeds
  local end=$((SECONDS + $1))
  until "${@:2}"; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

# --- nodes

boot() { # boot NODE: $dir/NODE.pid is then the process whose children are the node's
  # nsenter, not `ip netns exec`: that hides /sys/fs/cgroup, which slurmd wants to see. bash stays as the node's process 1
  # because it reaps; a zombie of a job's process group would keep the job in COMPLETING.
  setsid nsenter --net="/run/netns/lvp-$1" unshare --uts --mount --pid --fork --mount-proc bash -c '
    set -e
    hostname "$1"
    [[ -e /etc/hosts ]] || : >/etc/hosts
    mount --bind "$2/hosts" /etc/hosts
    mkdir "$2/root.$1"
    mount --bind "$3" "$2/root.$1"
    for folder in /tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
    mkdir -p "$3"
    mount --move "$2/root.$1" "$3" # for a repository in /tmp
    touch "$2/$1.ready"
    while :; do sleep 3600; done' boot "$1" "$dir" "$root" </dev/null >"$dir/log/$1.boot.log" 2>&1 &
  echo $! >"$dir/$1.pid"
  poll 20 test -e "$dir/$1.ready" || die "$1 did not start: $(tail -n 1 "$dir/log/$1.boot.log")"
}

inside() { # inside NODE COMMAND...
  local pid
  pid=$(cat "$dir/$1.pid" 2>/dev/null) && ip netns pids "lvp-$1" 2>/dev/null | grep -qx "$pid" || die "no node $1"
  nsenter -t "$pid" --net --uts --mount --pid="/proc/$pid/ns/pid_for_children" -- \
    env SLURM_CONF="$conf" bash -c 'cd "$0" 2>/dev/null || cd /; exec "$@"' "$PWD" "${@:2}"
}

plug() { # plug NAME ADDRESS [NETNS]: a cable from the switch's port NAME to eth0 of NETNS, or to lvphost on the host
  local end=lvphost there=()
  [[ $# -eq 3 ]] && end=eth0 there=(-n "$3")
  ip -n lvp-ctl link add name "$1" type veth peer name "$end" netns "${3:-$$}"
  ip -n lvp-ctl link set "$1" master lvpbr0 up
  ip "${there[@]}" addr add "$2/24" dev "$end"
  ip "${there[@]}" link set "$end" up
}

# --- commands

check() {
  local tool
  [[ $EUID -eq 0 ]] || { say "needs root"; return 77; }
  for tool in slurmctld slurmd sbatch munged mpirun ip tc ping nsenter; do
    command -v "$tool" >/dev/null ||
      { say "$tool is missing; apt-get install --no-install-recommends ${packages[*]}"; return 77; }
  done
  compgen -G '/usr/lib/*/slurm*/mpi_pmix.so' >/dev/null || { say "Slurm has no pmix plugin here"; return 77; }
  if ! probe 2>/dev/null; then
    ip netns del lvp-probe 2>/dev/null || true
    say "needs network, mount and process namespaces, a bridge and veth; not all are allowed here"
    return 77
  fi
}

probe() {
  ip netns add lvp-probe &&
    ip -n lvp-probe link add lvpbr0 type bridge &&
    ip -n lvp-probe link add name probe0 type veth peer name probe1 &&
    nsenter --net=/run/netns/lvp-probe unshare --uts --mount --pid --fork --mount-proc mount -t tmpfs tmpfs /tmp &&
    ip netns del lvp-probe
}

emptied() { # emptied SPACE: asked again until it is true, since what is killed may have just started another
  local pids
  pids=$(ip netns pids "$1")
  [[ -n $pids ]] || return 0
  kill -9 $pids 2>/dev/null || true
  return 1
}

down() {
  local space
  for space in $(spaces); do
    poll 30 emptied "$space" || die "a process of $space cannot be killed: $(ip netns pids "$space" | paste -sd' ')"
    ip netns del "$space"
  done
  ip link del lvphost 2>/dev/null || true
  [[ ! -e $dir/.lvp-cluster ]] || rm -rf --one-file-system "$dir"
}

configure() { # configure NODES CPUS
  local i
  printf '%s\n' "127.0.0.1 localhost" "$net.253 ctl" >"$dir/hosts"
  for ((i = 1; i <= $1; i++)); do echo "$net.$i n$i" >>"$dir/hosts"; done
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
  # Works without any cgroup: cgroup/v1 looks at none until a plugin asks, and those below do not. cgroup/v2 wants systemd.
  echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
  cat >"$dir/defaults" <<END
ClusterName=lvp
SlurmctldHost=ctl($net.253)
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for cred_expire seconds, 120 unless told; a launch on a busy machine must not take longer.
AuthInfo=socket=$dir/munge.socket,cred_expire=20
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
# Neither needs cgroups.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# More CPUs than the machine has.
SlurmdParameters=config_overrides
# Requeued jobs are looked at every 2 s instead of every 60.
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
# From SIGTERM to SIGKILL, 30 s unless told: enough to finish a write, short enough for tests of what does not end by itself.
KillWait=15
# A node that does not answer is DOWN after this, and its jobs are requeued; it may come back by itself.
SlurmdTimeout=30
ReturnToService=2
# scontrol knows a job for an hour after its end.
MinJobAge=3600
# sbatch -p high takes nodes from jobs of the default partition: their steps get SIGTERM, and what still runs after GraceTime is
# ended and requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-$1] NodeAddr=$net.[1-$1] CPUs=$2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=15
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
END
  # A default that is given anew is left out: every Slurm command would complain about a second line.
  awk -F= '{ split($0, word, " "); key = tolower(/^(Node|Partition)Name=/ ? word[1] : $1) }
    NR == FNR { given[key]; print; next } !(key in given)' <(echo "${LVP_CLUSTER_CONF:-}") "$dir/defaults" >"$conf"
}

all_idle() { # all_idle NODES
  [[ $(slurm sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l) -eq $1 ]]
}

up() { # up [NODES [CPUS]]
  local nodes=${1:-2} cpus=${2:-4} i
  [[ $nodes =~ ^[1-9][0-9]?$ && $cpus =~ ^[1-9][0-9]*$ ]] || die "usage: cluster.sh up [NODES [CPUS_PER_NODE]]"
  [[ $dir == /* && $dir != /tmp/* ]] || die "LVP_CLUSTER_DIR must be absolute and not below /tmp: $dir"
  check
  down
  [[ ! -d $dir ]] || rmdir "$dir" 2>/dev/null || die "$dir exists and is not ours"
  mkdir -p "$dir"
  touch "$dir/.lvp-cluster"
  mkdir "$dir/log" "$dir/state"
  configure "$nodes" "$cpus"

  # The switch and the controller are in one namespace, so that no firewall of the host is between nodes.
  ip netns add lvp-ctl
  ip -n lvp-ctl link set lo up
  ip -n lvp-ctl link add lvpbr0 type bridge
  ip -n lvp-ctl addr add "$net.253/24" dev lvpbr0
  ip -n lvp-ctl link set lvpbr0 up
  plug host "$net.254"
  boot ctl
  inside ctl munged --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
    --seed-file="$dir/munge.seed" --log-file="$dir/log/munged.log" || die "munged: $(tail -n 1 "$dir/log/munged.log")"
  inside ctl slurmctld || die "slurmctld did not start: cluster.sh logs"
  for ((i = 1; i <= nodes; i++)); do
    mkdir "$dir/spool-n$i"
    ip netns add "lvp-n$i"
    ip -n "lvp-n$i" link set lo up
    plug "n$i" "$net.$i" "lvp-n$i"
    boot "n$i"
    inside "n$i" slurmd || die "slurmd on n$i did not start: cluster.sh logs"
  done
  poll 30 all_idle "$nodes" || die "not all nodes are ready: cluster.sh logs"
}

link() { # link NODE up|down
  case ${2:-} in
    up)
      ip -n lvp-ctl link set "$1" master lvpbr0
      # slurmctld asks a DOWN node only every few minutes; slurmd reports to it on SIGHUP.
      inside "$1" bash -c 'kill -HUP "$(cat "$0")"' "$dir/slurmd-$1.pid" 2>/dev/null || true ;;
    down) ip -n lvp-ctl link set "$1" nomaster ;;
    *) die "usage: cluster.sh link NODE up|down" ;;
  esac
}

rate() { # rate NODE RATE|off
  [[ $# -eq 2 ]] || die "usage: cluster.sh rate NODE RATE|off"
  tc -n "lvp-$1" qdisc del dev eth0 root 2>/dev/null || true
  tc -n lvp-ctl qdisc del dev "$1" root 2>/dev/null || true
  [[ $2 != off ]] || return 0
  tc -n "lvp-$1" qdisc add dev eth0 root tbf rate "$2" burst 128kb latency 50ms
  tc -n lvp-ctl qdisc add dev "$1" root tbf rate "$2" burst 128kb latency 50ms
}

wait_job() { # wait_job JOB [SECONDS]; of an array, its worst state
  local end=$((SECONDS + ${2:-600})) jobs states
  while :; do
    jobs=$(slurm scontrol --oneliner show job "$1") || die "Slurm does not know job $1"
    states=$(sed 's/.* JobState=\([A-Z_]*\).*/\1/' <<<"$jobs" | sort -u)
    if ! grep -qvxE 'BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|TIMEOUT' <<<"$states"; then
      grep -vx COMPLETED <<<"$states" || { echo COMPLETED; return 0; }
      return 1
    fi
    # Not while a slurmd still ends the old start, which takes seconds on a busy machine or behind a cut link: it takes the
    # new start for the old one, and the job fails.
    if [[ $jobs == *" Reason=BeginTime "* ]]; then
      sleep 6
      slurm scontrol update JobId="$1" StartTime=now 2>/dev/null || true # it may have just started
    fi
    ((SECONDS < end)) || { echo "$states"; return 124; }
    sleep 0.3
  done
}

logs() { tail -n "${1:-40}" "$dir"/log/*.log 2>/dev/null || say "no logs in $dir"; }

print_env() {
  [[ -e $conf ]] || die "nothing is up"
  printf 'export SLURM_CONF=%q PATH=$PATH:/usr/sbin:/sbin OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1\n' "$conf"
}

command=${1:-}
shift || true
case $command in
  up | down | check | link | rate | logs) "$command" "$@" ;;
  exec) inside "$@" ;;
  env) print_env ;;
  wait) wait_job "$@" ;;
  packages) echo "${packages[*]}" ;;
  *) sed -n '5,16s/^#   //p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
