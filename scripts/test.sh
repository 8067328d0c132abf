#!/usr/bin/env bash
# Everything that CI checks: packages, a release build with warnings as errors, all tests, then the same under
# AddressSanitizer and UBSan. Needs neither a GPU nor Python.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install-deps.sh

jobs=$(nproc)
export CTEST_OUTPUT_ON_FAILURE=1

check() { # check PRESET: builds it and runs its tests
  echo "== $1"
  cmake --preset "$1" -DLVP_WERROR=ON --log-level=WARNING >/dev/null
  cmake --build --preset "$1" --parallel "$jobs" -- --quiet
  ctest --test-dir "build/$1" --parallel "$jobs"
}

check release
check asan
