#!/usr/bin/env bash
# Builds with ThreadSanitizer and runs the tests in which threads meet: the worker's lanes, its image pool, the CPU
# backend's threads and the transports; then two ranks that caption an image, so that the real communication and compute
# threads meet too. tests/tsan.supp names what is Open MPI's.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install-deps.sh

cmake --preset tsan -DLVP_WERROR=ON --log-level=WARNING >/dev/null
cmake --build --preset tsan --parallel "$(nproc)" -- --quiet

# libtsan of GCC 12 and 13 cannot map its shadow where the kernel randomises 32 bits of an address: switch that off.
without_aslr=(setarch "$(uname -m)" -R)
"${without_aslr[@]}" true 2>/dev/null || without_aslr=() # some containers forbid it

"${without_aslr[@]}" ctest --test-dir build/tsan --output-on-failure -L 'unit|model|transport'
# The host runtime for CUDA: right kernels pass, injected races are found.
if [[ -x build/tsan/tests/cudahost_selftest ]]; then "${without_aslr[@]}" build/tsan/tests/cudahost_selftest; fi

export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp halt_on_error=1 exitcode=66"
output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT
"${without_aslr[@]}" build/tsan/lvpipe caption --model models/demo --input examples/images --output "$output/captions" \
  --stages 2 --threads 2 --limit 3 --max-new-tokens 8
echo "tsan.sh: no data race found"
