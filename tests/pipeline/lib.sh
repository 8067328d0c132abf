# What the pipeline tests share; sourced by each. LVPIPE names the program. A test counts what failed, says it on stderr with
# the program's own words, and goes on; `finish` turns the count into the exit status.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

LVPIPE=$(realpath "${LVPIPE:-build/release/lvpipe}")
MODEL=$PWD/models/demo
IMAGES=$PWD/examples/images
[[ -x $LVPIPE ]] || { echo "$LVPIPE is not there; LVPIPE names the program" >&2; exit 1; }
[[ -f $MODEL/model.safetensors ]] || { echo "skipped: $MODEL has no weights"; exit 77; }
command -v jq >/dev/null || { echo "jq is missing; scripts/install-deps.sh installs it" >&2; exit 1; }

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # containers
work=$(mktemp -d "${TMPDIR:-/tmp}/lvp_pipeline_XXXXXX")
trap 'rm -rf "$work"' EXIT
failures=0

fail() { # fail TEXT [FILE]: the file is what the program said
  echo "FAILED: $1" >&2
  [[ -n ${2:-} && -s $2 ]] && tail -n 5 "$2" | sed 's/^/    /' >&2
  failures=$((failures + 1))
}

finish() {
  if ((failures > 0)); then
    echo "$failures failed" >&2
    exit 1
  fi
  echo "passed in $SECONDS s"
}

# run STATUS COMMAND...: runs it within two minutes; its words are in $work/stdout and $work/stderr afterwards.
run() {
  local expected=$1 status=0
  shift
  timeout 120 "$@" >"$work/stdout" 2>"$work/stderr" || status=$?
  ((status == expected)) && return 0
  fail "status $status instead of $expected: ${*##*/}" "$work/stderr"
  return 1
}

# says TEXT: the program's last words on stderr hold it.
says() { grep -qF -- "$1" "$work/stderr" || fail "it does not say '$1'" "$work/stderr"; }

# caption OUT OPTIONS...: captions into $work/OUT with the demo model; must succeed.
caption() {
  local out=$1
  shift
  run 0 "$LVPIPE" caption --model "$MODEL" --output "$work/$out" -q "$@"
}

# same A B WHAT: two files of $work hold the same bytes.
same() { cmp -s "$work/$1" "$work/$2" || fail "$3: $1 and $2 differ" <(diff "$work/$1" "$work/$2" | head -n 2 | cut -c -300); }

# expect WHAT ACTUAL EXPECTED
expect() { [[ $2 == "$3" ]] || fail "$1: '$2' instead of '$3'"; }

# own_processes: those of the run that was started with LVPIPE_TEST_MARK=$work, zombies left out.
own_processes() {
  local pid
  for pid in $(pgrep -x '(lvpipe|mpirun|prterun)' 2>/dev/null); do
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "LVPIPE_TEST_MARK=$work" && echo "$pid"
  done
}

# rank_pid RANK: the process of a rank; "" when there is none.
rank_pid() {
  local pid
  for pid in $(own_processes); do
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1" && echo "$pid"
  done | head -n 1
}

# nobody_left WHAT: within five seconds no process of this test runs any more.
nobody_left() {
  local i
  for ((i = 0; i < 50; i++)); do
    [[ -z $(own_processes) ]] && return
    sleep 0.1
  done
  fail "$1: processes are left"
  kill -KILL $(own_processes)
}

# many N: a manifest of N samples over the examples, in $work/rows.jsonl; none has its neighbour's image.
many() {
  example_manifest | jq -sc --argjson n "$1" 'range(($n + 9) / 10 | floor) as $i | .[] | .id += "/\($i)"' |
    head -n "$1" >"$work/rows.jsonl"
}

# The examples as a manifest with paths that hold wherever it lies; $1 samples.
example_manifest() { head -n "${1:-100}" "$IMAGES/manifest.jsonl" | jq -c --arg d "$IMAGES" '.image = $d + "/" + .image'; }
