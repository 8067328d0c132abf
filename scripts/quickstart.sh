#!/usr/bin/env bash
# From a fresh clone to captions: installs packages, builds lvpipe and captions examples/images with the demo model on a
# pipeline of four stages, cut where vision tokens are pruned. Run it as often as you like.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install-deps.sh

echo "Building lvpipe (some minutes the first time) ..."
mkdir -p build
log=build/quickstart.log
if ! { cmake --preset release && cmake --build --preset release --target lvpipe --parallel "$(nproc)"; } >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  echo "quickstart.sh: the build failed; all of its output is in $log" >&2
  exit 1
fi

command=(build/release/lvpipe caption --model models/demo --input examples/images --output captions
         --stages 4 --partition prune --overwrite)
printf '\n$ %s\n\n' "${command[*]}"
status=0
"${command[@]}" 2>"$log" || status=$?
if [[ $status -ne 0 ]]; then
  cat "$log" >&2
  exit "$status"
fi

jq -r '[.image, .caption | gsub("\\s+"; " ")] | join("\t")' captions/captions.jsonl |
  awk -F '\t' '
    { image[NR] = $1; caption[NR] = $2; if (length($1) > width) width = length($1) }
    END {
      while (length(rule) < width) rule = rule "-"
      printf "%-*s  caption\n%s  -------\n", width, "image", rule
      for (i = 1; i <= NR; i++) printf "%-*s  %s\n", width, image[i], caption[i]
    }'

printf '\nWhat lvpipe says about the run; the table has the bytes that crossed each cut:\n\n'
cat "$log"
printf '\nRows, counts and times are in captions/. Next: build/release/lvpipe --help, docs/guide.md\n'
