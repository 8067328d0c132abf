#!/usr/bin/env bash
# Installs what lvpipe is built, run and tested with, from the packages of Debian 12 or later and Ubuntu 24.04 or later.
#
#   scripts/install-deps.sh [--bench] [--fuzz] [--cluster]
#
# --bench adds oneDNN, which the benches compare against; --fuzz adds clang, which scripts/fuzz.sh builds with; --cluster
# adds Slurm and what else tests/cluster needs.
# Where nothing is missing it changes nothing and needs no root.
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config
  openmpi-bin libopenmpi-dev
  protobuf-c-compiler libprotobuf-c-dev libjansson-dev libxxhash-dev libarchive-dev
  libsentencepiece-dev libprotobuf-dev # from 0.2 on sentencepiece.pc asks for protobuf-lite.pc
  libjpeg-dev libspng-dev libwebp-dev
  libcmocka-dev jq
)
for option in "$@"; do
  case $option in
    --bench) packages+=(libdnnl-dev) ;;
    --fuzz) packages+=(clang libclang-rt-dev) ;;
    --cluster) read -ra more < <("$(dirname "$0")/../tests/cluster/cluster.sh" packages) && packages+=("${more[@]}") ;;
    *) echo "usage: scripts/install-deps.sh [--bench] [--fuzz] [--cluster]" >&2; exit 2 ;;
  esac
done

if ! command -v apt-get >/dev/null; then
  echo "install-deps.sh: no apt-get here; install what these Debian packages hold: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  echo "Packages: nothing is missing."
  exit 0
fi

as_root=(env DEBIAN_FRONTEND=noninteractive)
if [[ $EUID -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "install-deps.sh: root is needed for: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo "${as_root[@]}")
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() {
  "$@" >"$log" 2>&1 || { tail -n 20 "$log" >&2; echo "install-deps.sh: failed: $*" >&2; exit 1; }
}

echo "Packages: installing ${missing[*]}"
quietly "${as_root[@]}" apt-get -q update
quietly "${as_root[@]}" apt-get -q -y --no-install-recommends install "${missing[@]}"
