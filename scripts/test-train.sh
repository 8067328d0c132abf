#!/usr/bin/env bash
# Tests of the Python side (train/): the reference, the golden generators, the demo model and its tasks, the trainer. lvpipe itself never needs Python.
#
#   scripts/test-train.sh [pytest options]
#
# Makes .venv from train/requirements.txt on the first call and after a change of that file: about 2.5 GB to download,
# 4.3 GB on disk, 4 minutes; needs python3.11 or later on x86-64, no CUDA. LVP_PYTHON=/path/to/python skips that and uses
# an environment that already has the packages.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${LVP_PYTHON:-}
if [[ -z $python ]]; then
  python=.venv/bin/python
  stamp=.venv/requirements.sha256
  if ! sha256sum --check --status "$stamp" 2>/dev/null; then
    base=$(command -v python3.11 || command -v python3 || echo python3)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
      { echo "test-train.sh: no Python to make .venv with: apt-get install python3 python3-venv" >&2; exit 2; }
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo "test-train.sh: python 3.11 or later is needed, $base is $("$base" --version)" >&2; exit 2; }
    "$base" -m venv --clear .venv
    "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps -r train/requirements.txt
    sha256sum train/requirements.txt >"$stamp"
  fi
fi

# One thread: the goldens are checked with the order of additions they were made with.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" -m pytest -q -p no:cacheprovider train/tests "$@"
