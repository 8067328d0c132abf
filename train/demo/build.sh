#!/usr/bin/env bash
# Makes models/demo and examples/images: the dense model (stages A to D), its decision modules (E), pictures, curves.
#
#   train/demo/build.sh [--scale X] [--state DIR] [--output DIR]
#
# Needs train/requirements.txt, two cores and 14 GB of memory. A to D take 110 minutes on any machine, E 18 to 60; train/demo/README.md
# says what should come out. --scale X lengthens all of them: a machine half as fast needs --scale 2 for the same model.
# State is kept in DIR (default /var/tmp/lvp-demo): the same command goes on after a stop, and a larger --scale then lengthens D and E.
# --output DIR writes DIR/models/demo and DIR/examples/images instead, for a trial: --scale 0.01 --state /tmp/trial --output /tmp/trial.
set -euo pipefail
self=$(realpath "$0")

state=/var/tmp/lvp-demo scale=1 output=$(dirname "$self")/../..
while (($#)); do
  case $1 in
    --state) state=${2:?--state needs a folder}; shift 2 ;;
    --output) output=${2:?--output needs a folder}; shift 2 ;;
    --scale) scale=${2:?--scale needs a number}; shift 2 ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$self"; exit 0 ;;
    *) echo "build.sh: unknown option $1, see --help" >&2; exit 2 ;;
  esac
done
[[ $scale =~ ^[0-9]*\.?[0-9]+$ && ! $scale =~ ^[0.]*$ ]] || { echo "build.sh: --scale $scale: a number above 0" >&2; exit 2; }
if awk "BEGIN { exit !($scale < 0.2) }" && [[ $output -ef $(dirname "$self")/../.. ]]; then
  echo "build.sh: --scale $scale makes a model that answers at random: for a trial, give --output as well" >&2
  exit 2
fi
mkdir -p "$state" "$output/models/demo"
state=$(realpath "$state") output=$(realpath "$output") model=$(realpath "$output")/models/demo
cd "$(dirname "$self")/../.."
python=${LVP_PYTHON:-$PWD/.venv/bin/python}
"$python" -c 'import torch, transformers' || {
  echo "build.sh: no Python with train/requirements.txt: scripts/test-train.sh --collect-only makes .venv, or set LVP_PYTHON" >&2
  exit 2
}

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false GLOO_SOCKET_IFNAME=lo
# The same blocks are taken and given back in every step: keep them, on huge pages (a sixth of the time).
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=34359738368:glibc.malloc.trim_threshold=34359738368
fast=()
library=$(mktemp -d)
trap 'rm -rf "$library"' EXIT
if grep -q amx_bf16 /proc/cpuinfo; then fast=(--bf16); fi # Intel's without it are faster in f32
if grep -q AuthenticAMD /proc/cpuinfo; then
  if grep -q avx512_bf16 /proc/cpuinfo; then fast=(--bf16); fi
  if command -v cc >/dev/null; then # MKL's fast path for narrow matrices is Intel's unless it is told this
    echo 'int mkl_serv_intel_cpu_true(void) { return 1; }' | cc -shared -fPIC -o "$library/mkl.so" -x c -
    export LD_PRELOAD=$library/mkl.so
  fi
fi

scaled() { awk "BEGIN { printf \"%.${2:-0}f\", $1 * $scale }"; } # scaled NUMBER [DIGITS]
stage() { # stage NAME OPTION...: curves.py reads what it prints
  "$python" -m train.demo.train "$1" --state "$state" "${@:2}" | tee -a "$state/$1.log"
}

# The tokenizer stays where there is one: another would make every committed golden and trained state another model's.
[[ -e models/demo/tokenizer.model ]] || "$python" -m train.demo.tokenizer --output models/demo
[[ -e $model/tokenizer.model ]] || cp models/demo/tokenizer.model "$model"
if [[ ! -e $state/joint.pt ]]; then
  set -m # A gets a process group, to be ended as a whole
  stage vision "${fast[@]}" --minutes "$(scaled 19 2)" --batch 32 &
  beside=$!
  set +m
  trap 'kill -- -$beside 2>/dev/null || true; rm -rf "$library"' EXIT
  stage language "${fast[@]}" --minutes "$(scaled 19 2)" --batch 24 --questions 6
  wait "$beside"
  trap 'rm -rf "$library"' EXIT
  stage projector --steps "$(scaled 1500)"
fi
stage joint "${fast[@]}" --minutes "$(scaled 90 2)" --workers 2 --batch 20 --questions 9
"$python" -m train.demo.export --state "$state" --output "$model"

if [[ ! -e $state/questions/questions.jsonl ]]; then
  "$python" -m train.tasks.make --split validation --images 3600 --output "$state/questions.part"
  mv "$state/questions.part" "$state/questions"
fi
modules=$state/modules-$(sha256sum <"$model/model.safetensors" | cut -c1-12) # another model needs others
"$python" -m torch.distributed.run --standalone --nproc-per-node 2 -m train.lvpruning.train --model "$model" \
  --data "$state/questions/questions.jsonl" --output "$modules" --dtype f32 --save-dtype bf16 --points 1,2,4 --batch 48 --micro-batch 24 \
  --no-recompute --begin "$(scaled 12000)" --begin-steps "$(scaled 3000)" --seed 1 --steps "$(scaled 600)" --save-every 60
cp "$modules/lvpruning.safetensors" "$model"
"$python" -m train.demo.make_examples --output "$output/examples/images"
"$python" -m train.demo.curves --state "$state" --output "$model/curves.svg"
