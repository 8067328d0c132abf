#!/usr/bin/env bash
# lvpipe beside llama.cpp on this machine: the language part of tiny-llava (22 layers of 2048), random weights, a batch of
# prompts of 606 rows (576 of an image, 30 of text) that are prefilled and then decoded together. llama.cpp gets token
# numbers in place of an image's rows, so no vision encoder is in either figure. Both run on all cores, one after the other.
#
#   bench/peers/llama_cpp.sh [IMAGES [NEW_TOKENS [TYPE...]]]     16 32 BF16 F16 Q8_0 Q4_0; 20 minutes and more
#
# Builds llama.cpp from the source inside PyPI's llama-cpp-python, with its default options for this CPU, under
# PEERS_DIR (build/peers). Needs python3 with venv, cmake, ninja, a C++ compiler, jq.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

images=${1:-16} new_tokens=${2:-32} rows=606
types=("${@:3}")
((${#types[@]})) || types=(BF16 F16 Q8_0 Q4_0)
dir=$(realpath -m "${PEERS_DIR:-build/peers}")
lvpipe=build/release/lvpipe
mkdir -p "$dir"

if [[ ! -x $dir/llama/bin/llama-batched-bench ]]; then
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install -q numpy gguf
  "$dir/venv/bin/pip" download -q --no-deps --no-binary :all: -d "$dir" llama-cpp-python
  tar -xzf "$dir"/llama_cpp_python-*.tar.gz -C "$dir"
  cmake -S "$dir"/llama_cpp_python-*/vendor/llama.cpp -B "$dir/llama" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF >"$dir/cmake.log"
  cmake --build "$dir/llama" --target llama-batched-bench llama-quantize >"$dir/build.log"
fi
[[ -s $dir/BF16.gguf ]] || "$dir/venv/bin/python" bench/peers/make_gguf.py "$dir/BF16.gguf"
for type in "${types[@]}"; do
  [[ -s $dir/$type.gguf ]] || "$dir/llama/bin/llama-quantize" --allow-requantize "$dir/BF16.gguf" "$dir/$type.gguf" "$type" >"$dir/quantize.log" 2>&1
done

# prefill and decode seconds to a row of the table; the first row is what the others are compared with
report() {
  awk -v name="$1" -v prefill="$2" -v decode="$3" -v images="$images" -v rows=$rows -v new="$new_tokens" 'BEGIN {
    printf "%-22s %12.1f %12.1f %12.4f\n", name, images * rows / prefill, decode > 0 ? images * (new - 1) / decode : 0,
      images / (prefill + decode) }'
}

lscpu | sed -n 's/^Model name: *//p'
echo "llama-cpp-python $(basename "$dir"/llama_cpp_python-*.tar.gz .tar.gz | sed 's/.*-//'), $("$lvpipe" --version | head -1); $images images, $new_tokens new tokens"
printf '%-22s %12s %12s %12s\n' "language part" "prompt r/s" "decode t/s" "images/s"
"$lvpipe" bench --shape tiny-llava --keep none,0.5 --images "$images" --concurrency "$images" --new-tokens "$new_tokens" \
  --repeats 1 --json -q | jq -r '[.keep, .workers[0].prefill_seconds, .workers[0].decode_seconds] | @tsv' |
  while read -r keep prefill decode; do report "lvpipe bf16, keep $keep" "$prefill" "$decode"; done
for type in "${types[@]}"; do
  "$dir/llama/bin/llama-batched-bench" -m "$dir/$type.gguf" -c $((images * (rows + new_tokens))) -b 2048 -ub 512 -npp $rows \
    -ntg $((new_tokens - 1)) -npl "$images" -t "$(nproc)" -tb "$(nproc)" --output-format jsonl 2>"$dir/$type.log" |
    jq -r '[.t_pp, .t_tg] | @tsv' | while read -r prefill decode; do report "llama.cpp $type" "$prefill" "$decode"; done
done
