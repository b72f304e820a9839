"""Engines that run the shared script."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from scripted import RULES, write_script


@pytest.fixture(scope="session")
def script_path(tmp_path_factory):
    return write_script(tmp_path_factory.mktemp("script"), RULES)


@pytest.fixture(scope="session")
def make_scripted(make_engine, script_path):
    """As ``make_engine``, of the shared script. The sizes are those of every test, so that they share programs."""

    def make(**settings):
        return make_engine(**{"model_path": f"scripted:{script_path}", "max_sequence_length": 8192, **settings})

    return make
