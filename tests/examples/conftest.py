"""The programs of examples/ as modules, and the model that they talk to."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from conftest import wait_until_idle

from cvllm_jax.openai import OpenAIAdapter

EXAMPLES = Path(__file__).parents[2] / "examples"

RULES = [
    {"when": "weather", "say": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'},
    {"when": "celsius", "say": "It is 21 °C in Paris."},
    {"when": "at length", "say": "word " * 150},
    {"when": "number (1|2|3)", "say": "A number."},
    {"when": "", "say": "Hello! How can I help?"},
]


@pytest.fixture(scope="session")
def script_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "script.json"
    path.write_text(json.dumps(RULES), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def engine(make_engine, script_path):
    """The real engine with a model that says :data:`RULES`, in the sizes of other scripts' engines."""
    return make_engine(model_path=f"scripted:{script_path}", max_sequence_length=8192)


@pytest.fixture
def adapter(engine):
    yield OpenAIAdapter(engine)
    wait_until_idle(engine)


@pytest.fixture
def load_example(monkeypatch):
    """An example as a module, imported without running its ``main``."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load
