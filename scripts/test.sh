#!/usr/bin/env bash
# Everything that CI checks: packages, a release build with warnings as errors, all tests, then the same under
# AddressSanitizer and UBSan. Needs neither a GPU nor Python. As root, Slurm is installed too and lvpipe tested under it, on
# nodes made of network namespaces; elsewhere those tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $EUID -eq 0 ]]; then scripts/install-deps.sh --cluster; else scripts/install-deps.sh; fi

jobs=$(nproc)
export CTEST_OUTPUT_ON_FAILURE=1

check() { # check PRESET [ctest options]: builds it and runs its tests
  local preset=$1
  shift
  echo "== $preset"
  cmake --preset "$preset" -DLVP_WERROR=ON --log-level=WARNING >/dev/null
  cmake --build --preset "$preset" --parallel "$jobs" -- --quiet
  ctest --test-dir "build/$preset" --parallel "$jobs" "$@"
}

check release
# The CUDA code, executed by a host runtime: every operation, and the demo's captions.
if [[ -f /usr/local/cuda/include/cublasLt.h && -f /usr/local/cuda/include/nccl.h ]]; then
  check cudahost --tests-regex 'cuda|transport|ops_(attention|choose|device|prune|rows)'
else
  echo "== cudahost: skipped, /usr/local/cuda has no headers"
fi
# Of the whole-program tests only those that feed it input of all kinds: the others run the same code four times slower.
check asan --exclude-regex 'pipeline_(bench|caption_contract|chaos|drain|eval|faults|hang|idle|invariance|cuda)|cluster_.*|cuda_.*'
