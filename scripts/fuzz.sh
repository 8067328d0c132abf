#!/usr/bin/env bash
# Fuzzes every reader of untrusted bytes under AddressSanitizer and UBSan, starting from the golden files.
#
#   scripts/fuzz.sh [SECONDS_EACH] [TARGET...]      60 seconds, all of tests/fuzz
#
# What was learnt stays in build/fuzz/corpus for the next call; an input that fails a target is put into
# build/fuzz/findings and ends the script. Replay one with: build/fuzz/tests/TARGET FILE
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "usage: scripts/fuzz.sh [SECONDS_EACH] [TARGET...]" >&2; exit 2; }
shift || true
targets=("$@")
if [[ ${#targets[@]} -eq 0 ]]; then
  for source in tests/fuzz/fuzz_*.c; do targets+=("$(basename "$source" .c)"); done
fi

scripts/install-deps.sh --fuzz
cmake --preset fuzz --log-level=WARNING >/dev/null
cmake --build --preset fuzz --parallel "$(nproc)" --target "${targets[@]}" -- --quiet

# Each golden file in the form that its target reads.
add_seeds() { # add_seeds TARGET FOLDER
  local file folder
  case $1 in
    fuzz_image) # one byte of settings comes first
      for file in tests/golden/images/*.{jpg,png,webp}; do
        { printf '\0'; cat "$file"; } >"$2/$(basename "$file")"
      done ;;
    fuzz_safetensors) # the small ones
      find tests/golden/models -name lvpruning.safetensors -size -60k | while read -r file; do
        cp "$file" "$2/$(basename "$(dirname "$file")")"
      done ;;
    fuzz_config) # three texts with NUL between them
      for file in tests/golden/models/*/config.json; do
        folder=$(dirname "$file")
        { cat "$file"; printf '\0'; cat "$folder"/pr*cessor_config.json; printf '\0'; cat "$folder/generation_config.json"; } \
          >"$2/$(basename "$folder")"
      done ;;
    fuzz_tar)
      tar -cf "$2/images" -C examples/images scene-0000.png manifest.jsonl
      tar --format=pax -cf "$2/pax" -C tests/golden/images cases.json webp_exif.webp ;;
    fuzz_manifest) cp examples/images/manifest.jsonl "$2/examples" ;;
    fuzz_tokenizer)
      for file in tests/golden/tokenizer/*/tokenizer.json; do
        cp "$file" "$2/$(basename "$(dirname "$file")").json"
      done ;;
  esac
}

export UBSAN_OPTIONS=print_stacktrace=1
mkdir -p build/fuzz/findings
for target in "${targets[@]}"; do
  corpus=build/fuzz/corpus/$target seeds=build/fuzz/seeds/$target
  rm -rf "$seeds"
  mkdir -p "$corpus" "$seeds"
  add_seeds "$target" "$seeds"
  echo "== $target, $seconds s"
  log=build/fuzz/$target.log
  if ! "build/fuzz/tests/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=1 \
      -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$target-" "$corpus" "$seeds" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "fuzz.sh: $target failed; its input is in build/fuzz/findings" >&2
    exit 1
  fi
  grep -E '^(#[0-9]+.*DONE|stat::number_of_executed_units|stat::slowest_unit_time_sec)' "$log"
done
