#!/usr/bin/env bash
# Everything that only a GPU can tell, in one go: builds the CUDA module, compares every operation with the reference on the
# device, runs compute-sanitizer where it is installed, captions the demo images on GPU and CPU and over two GPUs by NCCL and by MPI,
# and measures llava-1.5-7b with made-up weights on one GPU and over several. Writes a folder with one JSON file a measurement and a short report.
#
#   scripts/gpu-check.sh [FOLDER]        gpu-check
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-gpu-check} build=build/gpu lvpipe=build/gpu/lvpipe
mkdir -p "$out"
report=$out/report.md
section() { printf '\n## %s\n\n' "$1" | tee -a "$report"; }

echo "# GPU check" >"$report"
nvidia-smi -L | tee -a "$report"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLVP_CUDA=ON -DLVP_CUDA_ARCHITECTURES=native >/dev/null
cmake --build "$build" -- --quiet
"$lvpipe" --version | tee -a "$report"

section "Operations against the reference"
ctest --test-dir "$build" -L ops --output-on-failure | tail -n 5 | tee -a "$report"

section "compute-sanitizer"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck; do
    for test in attention choose prune rows device; do
      LVP_CUDA_MODULE=$build/lvpipe_cuda.so compute-sanitizer --tool $tool --error-exitcode 1 "$build/tests/ops_$test" >"$out/$tool-$test.txt" 2>&1 &&
        echo "$tool, ops_$test: clean" || echo "$tool, ops_$test: see $out/$tool-$test.txt"
    done
  done | tee -a "$report"
else
  echo "not installed" | tee -a "$report"
fi

section "Demo captions, GPU against CPU"
for device in cpu cuda; do
  "$lvpipe" caption --model models/demo --input examples/images --output "$out/captions-$device" --overwrite --device $device --logprobs -q
done
paste <(jq -c '.id as $id | range(.token_ids | length) as $i | [$id, $i, .token_ids[$i], .logprobs[$i]]' "$out/captions-cpu/captions.jsonl") \
  <(jq -c 'range(.token_ids | length) as $i | [.token_ids[$i], .logprobs[$i]]' "$out/captions-cuda/captions.jsonl") |
  jq -rs '. as $all | [range(0; length; 2)] | map({cpu: $all[.], gpu: $all[. + 1]}) |
    "\(map(select(.cpu[2] == .gpu[0])) | length) of \(length) tokens are equal",
    (.[] | select(.cpu[2] != .gpu[0]) | "differs: \(.cpu[0]) token \(.cpu[1]), logprobs \(.cpu[3]) and \(.gpu[1])")' | tee -a "$report"

gpus=$(nvidia-smi -L | grep -c '^GPU')
section "Rows between two GPUs"
if ((gpus > 1)); then
  if LVP_TESTS_NCCL=1 LVP_CUDA_MODULE=$build/lvpipe_cuda.so timeout 300 "$build/tests/transport_conformance" >"$out/conformance.txt" 2>&1; then
    echo "NCCL keeps to the transports' rules"
  else
    echo "NCCL does not keep to the transports' rules: see $out/conformance.txt"
  fi | tee -a "$report"
  for nccl in 1 0; do
    LVPIPE_NCCL=$nccl "$lvpipe" caption --model models/demo --input examples/images --output "$out/captions-nccl-$nccl" --overwrite \
      --device cuda --stages 2 -q
    echo "LVPIPE_NCCL=$nccl: rows go by $(jq -r .world.transport "$out/captions-nccl-$nccl/run.json")"
  done | tee -a "$report"
  if cmp "$out/captions-nccl-1/captions.jsonl" "$out/captions-nccl-0/captions.jsonl"; then echo "the same bytes"; else echo "other bytes"; fi | tee -a "$report"
else
  echo "not tried: one GPU" | tee -a "$report"
fi

section "llava-1.5-7b, made-up weights, one GPU"
for keep in none 0.6 0.5; do
  "$lvpipe" bench --shape llava-1.5-7b --device cuda --keep $keep --images 64 --new-tokens 64 --repeats 3 --json -q >"$out/bench-$keep.json"
  jq -r '"keep \(.keep): \(.images_per_second.median) images/s"' "$out/bench-$keep.json"
done | tee -a "$report"

section "llava-1.5-7b, made-up weights, several GPUs"
if ((gpus > 1)); then
  stages=$((gpus < 4 ? gpus : 4))
  for nccl in 1 0; do
    LVPIPE_NCCL=$nccl "$lvpipe" bench --shape llava-1.5-7b --device cuda --keep 0.5 --stages $stages --images 64 --new-tokens 64 --repeats 3 --json -q \
      >"$out/bench-stages-nccl-$nccl.json"
    jq -r '"LVPIPE_NCCL='$nccl', '$stages' stages: \(.images_per_second.median) images/s"' "$out/bench-stages-nccl-$nccl.json"
  done | tee -a "$report"
else
  echo "not tried: one GPU" | tee -a "$report"
fi

if command -v nsys >/dev/null; then
  nsys profile -o "$out/decode" --force-overwrite true "$lvpipe" bench --shape llava-1.5-7b --device cuda --keep 0.5 --images 8 --new-tokens 32 \
    --repeats 1 -q >/dev/null && echo "timeline: $out/decode.nsys-rep" | tee -a "$report"
fi
echo "report: $report"
