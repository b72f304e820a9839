#!/bin/sh
# Usage: deploy/gpu-python.sh EXTRA...   Prints the Python that runs what needs a GPU.
# That is PYTHON, or python3, as it is, if it has what the engine needs and its JAX sees an NVIDIA GPU: machines with
# GPUs often come with such a Python and without a network. Otherwise it is that of .venv, built with these extras.
set -eu
cd "$(dirname "$0")/.."

python=$(command -v "${PYTHON:-python3}" || true)
if [ -n "$python" ] && "$python" -c '
import sys
import flax, jax, jaxtyping, jinja2, numpy, pytest, safetensors, tokenizers
sys.exit(sys.version_info < (3, 12) or jax.default_backend() != "gpu")' >/dev/null 2>&1; then
    echo "$python"
    exit
fi
if ! nvidia-smi >/dev/null 2>&1 && [ ! -e /proc/driver/nvidia/version ]; then
    echo "There is no NVIDIA GPU here: neither nvidia-smi nor a driver." >&2
    exit 1
fi
deploy/venv.sh "$@" >&2
echo .venv/bin/python
