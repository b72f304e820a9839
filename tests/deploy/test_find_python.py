"""deploy/find-python.sh tries interpreters by running them; here scripts answer in their place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "find-python.sh"
TOOLS = ("sh", "dirname", "mktemp", "rm")


@pytest.fixture
def machine(tmp_path):
    """A machine with a shell and nothing else: ``machine(name, kind)`` installs, ``machine.find()`` runs."""
    return Machine(tmp_path)


class Machine:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            self.link(tool)

    def link(self, tool: str) -> None:
        (self.bin / tool).symlink_to(shutil.which(tool, path=os.defpath))

    def put(self, path: str, script: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"#!/bin/sh\n{script}\n")
        target.chmod(0o755)
        return target

    def find(self, **variables: str) -> subprocess.CompletedProcess:
        environment = {"PATH": str(self.bin), "HOME": str(self.root), **variables}
        return subprocess.run(
            [str(self.bin / "sh"), str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
        )


WORKS = f'exec "{sys.executable}" "$@"'
INACTIVE_SHIM = 'echo "pyenv: the command exists in these Python versions" >&2; exit 127'
TOO_OLD = "exit 1"
NO_VENV = "exit 3"


def test_first_working_name_wins(machine):
    machine.put("bin/python3.12", INACTIVE_SHIM)
    machine.put("bin/python3.13", WORKS)
    machine.put("bin/python3", TOO_OLD)
    found = machine.find()
    assert found.returncode == 0
    assert found.stdout == f"{sys.executable}\n"
    assert found.stderr == ""


def test_plain_python3_is_enough(machine):
    machine.put("bin/python3", WORKS)
    assert machine.find().stdout == f"{sys.executable}\n"


def test_pyenv_versions_are_tried_when_no_name_works(machine):
    machine.put("bin/python3.12", INACTIVE_SHIM)
    machine.put(".pyenv/versions/3.12.1/bin/python", INACTIVE_SHIM)
    machine.put(".pyenv/versions/3.13.0/bin/python", WORKS)
    assert machine.find().stdout == f"{sys.executable}\n"


def test_pyenv_root_is_honoured_and_may_hold_spaces(machine):
    machine.put("py env/versions/3.12.7/bin/python", WORKS)
    assert machine.find(PYENV_ROOT=str(machine.root / "py env")).stdout == f"{sys.executable}\n"


def test_uv_fetches_one(machine):
    fetched = machine.put("fetched/python3.12", WORKS)
    asked = machine.root / "asked"
    machine.put("bin/uv", f'case "$2" in install) : > "{asked}" ;; find) echo "{fetched}" ;; esac')
    assert machine.find().stdout == f"{sys.executable}\n"
    assert asked.exists()


def test_pip_fetches_uv(machine):
    fetched = machine.put("fetched/python3.12", WORKS)
    machine.put("uv", f'case "$2" in find) echo "{fetched}" ;; esac')
    machine.link("cp")
    machine.link("mkdir")
    install = f'mkdir -p "$4/bin" && cp "{machine.root}/uv" "$4/bin/uv"'
    machine.put("bin/pip3", f'[ "$1" = --version ] || {{ {install}; }}')
    assert machine.find().stdout == f"{sys.executable}\n"


@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        ({}, "neither uv nor pip is here"),
        ({"bin/python3": TOO_OLD}, "neither uv nor pip is here"),
        ({"bin/python3.12": NO_VENV}, "python3.12 lacks the venv module"),
        ({"bin/uv": "exit 1"}, "uv could not fetch one"),
        ({"bin/pip": '[ "$1" = --version ]'}, "could not be installed with pip"),
    ],
)
def test_one_sentence_says_what_is_missing(machine, installed, reason):
    for path, script in installed.items():
        machine.put(path, script)
    failed = machine.find()
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert reason in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_named_interpreter_is_not_replaced_by_another(machine):
    machine.put("bin/python3.12", WORKS)
    broken = machine.put("elsewhere/python", INACTIVE_SHIM)
    failed = machine.find(PYTHON=str(broken))
    assert failed.returncode == 1
    assert str(broken) in failed.stderr
