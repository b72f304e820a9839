#!/bin/sh
# Prints the path of a Python that can build .venv: 3.12, 3.13 or 3.14 with a working venv module.
# Every candidate is run, not only looked up: pyenv's shims exist for versions that are not active.
# Newer Pythons are not taken: the pinned packages have no wheels for them yet.
set -u

lacks_venv=""

# Prints the real path of interpreter $1 if it will do.
try() {
    "$1" -I -c '
import sys, sysconfig
if not (3, 12) <= sys.version_info[:2] <= (3, 14) or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(1)
try:
    import ensurepip, venv  # Debian ships them apart, as python3-venv
except ImportError:
    sys.exit(3)
print(sys.executable)' 2>/dev/null
    status=$?
    [ $status -eq 3 ] && lacks_venv=$1
    return $status
}

if [ -n "${PYTHON:-}" ]; then
    try "$PYTHON" && exit
    echo "PYTHON=$PYTHON is not a Python 3.12, 3.13 or 3.14 with a working venv module." >&2
    exit 1
fi

for name in python3.12 python3.13 python3.14 python3; do
    try "$name" && exit
done
for minor in 12 13 14; do
    for path in "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.$minor".*/bin/python; do
        [ -x "$path" ] && try "$path" && exit
    done
done

# None is here. uv can fetch one, and pip can fetch uv.
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
reason="neither uv nor pip is here to fetch one"
uv=$(command -v uv) || for pip in "python3 -m pip" pip3 pip; do
    # shellcheck disable=SC2086  # two words on purpose
    if $pip --version >/dev/null 2>&1; then
        reason="uv, which could fetch one, could not be installed with pip"
        $pip install -qq --target "$scratch" uv >&2 && uv=$scratch/bin/uv && break
    fi
done
if [ -n "$uv" ]; then
    reason="uv could not fetch one"
    "$uv" python install --quiet 3.12 >&2 &&
        found=$("$uv" python find --system --python-preference only-managed 3.12) &&
        try "$found" && exit
fi
if [ -n "$lacks_venv" ]; then
    echo "$lacks_venv lacks the venv module (Debian and Ubuntu: install $lacks_venv-venv), and $reason." >&2
else
    echo "Python 3.12, 3.13 or 3.14 is needed and none works here, and $reason: install one of them." >&2
fi
exit 1
