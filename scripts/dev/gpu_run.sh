#!/usr/bin/env bash
# Tests and measures the code on one GPU of 80 GB or more, in at most 12 minutes.
#
#   scripts/dev/gpu_run.sh                       all parts, most important first
#   scripts/dev/gpu_run.sh --parts moe step      only these parts
#   scripts/dev/gpu_run.sh --list                list the parts and their time limits
#   scripts/dev/gpu_run.sh --tiny                test the parts on the CPU, with tiny sizes
#
# Requires torch and transformers. A part that needs a missing package (pytest, Composer, bitsandbytes) is recorded as
# not run. A part that fails or takes too long is recorded as failed, and the next part is started. Exits with 1 if a
# part failed.
# Environment variables:
#   PYTHON   the environment's interpreter (default: .venv/bin/python, or else python3)
#   OUT      folder for gpu_run.json, gpu_run.md and gpu_run.log (default: runs/gpu)
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
"$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(not (find_spec("torch") and find_spec("transformers")))' || {
    echo "error: $PYTHON has no torch or no transformers: install them, or set PYTHON" >&2
    exit 2
}
# Run as one rank, even under a launcher.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR MASTER_PORT
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m scripts.dev.gpu_run.run --out "${OUT:-runs/gpu}" "$@"
