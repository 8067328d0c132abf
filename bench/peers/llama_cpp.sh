#!/usr/bin/env bash
# lvpipe beside llama.cpp on this machine: tiny-llava (CLIP-L/336 and 22 layers of 2048), or what SHAPE names
# (llava-1.5-7b: 23 GB of memory, 30 GB of disk), random weights, a batch of prompts of 606 rows (576 of an image, 30 of text) that are prefilled and then decoded together. llama.cpp's batched-bench
# gets token numbers in place of an image's rows; its CLIP code is timed apart, one image after the other as its command
# line runs it, with f16 weights. Everything runs on all cores, one after the other. lvpipe decodes rows of earlier prompts in
# the steps of later ones, so it has no rate of prompts or of decoding alone: its language figure counts the busy seconds of its
# worker, with rank 0 and waiting left out, llama.cpp's the seconds that passed. With CLIP, both count what passed.
#
#   bench/peers/llama_cpp.sh [IMAGES [NEW_TOKENS [TYPE...]]]     16 32 BF16 F16 Q8_0 Q4_0; 25 minutes and more
#
# Builds llama.cpp from the source inside PyPI's llama-cpp-python, with its default options for this CPU, under
# PEERS_DIR (build/peers). Needs python3 with venv, cmake, ninja, a C++ compiler, jq.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

images=${1:-16} new_tokens=${2:-32} rows=606
types=("${@:3}")
((${#types[@]})) || types=(BF16 F16 Q8_0 Q4_0)
dir=$(realpath -m "${PEERS_DIR:-build/peers}")
lvpipe=build/release/lvpipe shape=${SHAPE:-tiny-llava}
version=0.3.36 # clip_bench.cpp uses what its llama.cpp calls internal
sources=$dir/llama_cpp_python-$version/vendor/llama.cpp
models=$dir/$shape
mkdir -p "$models"

if [[ ! -x $dir/clip_bench ]]; then
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install -q numpy gguf
  "$dir/venv/bin/pip" download -q --no-deps --no-binary :all: -d "$dir" llama-cpp-python==$version
  tar -xzf "$dir"/llama_cpp_python-$version.tar.gz -C "$dir"
  cmake -S "$sources" -B "$dir/llama" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_MTMD=ON -DMTMD_VIDEO=OFF >"$dir/cmake.log"
  cmake --build "$dir/llama" --target llama-batched-bench llama-quantize mtmd >"$dir/build.log"
  c++ -O2 -std=c++17 -o "$dir/clip_bench" bench/peers/clip_bench.cpp -I "$sources/tools/mtmd" -I "$sources/include" \
    -I "$sources/ggml/include" -I "$sources/vendor" -L "$dir/llama/bin" -Wl,-rpath,"$dir/llama/bin" -lmtmd -lllama -lggml -lggml-base
fi
[[ -s $models/BF16.gguf ]] || "$dir/venv/bin/python" bench/peers/make_gguf.py language "$models/BF16.gguf" "$shape"
[[ -s $models/vision.gguf ]] || "$dir/venv/bin/python" bench/peers/make_gguf.py vision "$models/vision.gguf" "$shape"
for type in "${types[@]}"; do
  [[ -s $models/$type.gguf ]] || "$dir/llama/bin/llama-quantize" --allow-requantize "$models/BF16.gguf" "$models/$type.gguf" "$type" >"$dir/quantize.log" 2>&1
done

# report NAME LANGUAGE WITH_CLIP: seconds of all images to a row of the table
report() {
  awk -v name="$1" -v language="$2" -v all="$3" -v images="$images" 'BEGIN {
    printf "%-26s %16.4f %16.4f\n", name, images / language, images / all }'
}

ours() { # ours NAME OPTIONS...
  "$lvpipe" bench --shape "$shape" --images "$images" --concurrency "$images" --new-tokens "$new_tokens" --repeats 1 --json -q \
    "${@:2}" | jq -r '[.keep, (.workers[0] | .prefill_seconds + .decode_seconds), .images / .images_per_second.median] | @tsv' |
    while read -r keep language all; do report "lvpipe $1, keep $keep" "$language" "$all"; done
}

width=256 # an eighth
[[ $shape == llava-1.5-7b ]] && width=512
lscpu | sed -n 's/^Model name: *//p'
echo "llama-cpp-python $version, $("$lvpipe" --version | head -1); $images images, $new_tokens new tokens"
printf '%-26s %16s %16s\n' "" "language, img/s" "with CLIP, img/s"
ours bf16 --keep none,0.5 --pruner-width "$width"
ours int8 --keep none,0.5 --pruner-width "$width" --weights int8
clip=$("$dir/clip_bench" "$models/vision.gguf" "$(nproc)" 4 2>"$dir/clip.log")
for type in "${types[@]}"; do
  "$dir/llama/bin/llama-batched-bench" -m "$models/$type.gguf" -c $((images * (rows + new_tokens))) -b 2048 -ub 512 -npp $rows \
    -ntg $((new_tokens - 1)) -npl "$images" -t "$(nproc)" -tb "$(nproc)" --output-format jsonl 2>"$dir/$type.log" |
    jq -r --argjson clip "$clip" --argjson n "$images" '(.t_pp + .t_tg) as $language | [$language, $n * $clip + $language] | @tsv' |
    while read -r language all; do report "llama.cpp $type" "$language" "$all"; done
done
