"""What the clients share that run in .venv-clients (`make test-clients`)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("langchain_openai") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test` runs without the clients

# before litellm is imported, which asks GitHub for prices otherwise
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

sys.path.append(str(Path(__file__).parent))  # importlib mode adds no folder by itself

from model_server import PYTHON, ROOT, call, serve

RULES = [
    {"when": r"(?i)\bweather\b", "say": call("get_weather", city="Paris")},
    {"when": "21 degrees", "say": "<think>\nThe tool says 21.\n</think>\n\nIt is 21 °C in Paris."},
    {"when": "Ada as JSON", "say": '{"name": "Ada", "age": 36}'},
    {"when": "Ada with Person", "say": call("Person", name="Ada", age=36)},
    {"when": "Ada with PartialPerson", "say": call("PartialPerson", name="Ada", age=36)},
    {"when": "Ada with final_result", "say": call("final_result", name="Ada", age=36)},
    {"when": "hello", "say": "Hello, wörld 👋🏽!"},
]


@pytest.fixture(scope="session")
def scripted(tmp_path_factory):
    """A server that says what ``RULES`` tell it."""
    path = tmp_path_factory.mktemp("script") / "script.json"
    path.write_text(json.dumps(RULES), encoding="utf-8")
    sizes = ("--max-sequence-length", "8192", "--dtype", "f32", "--prefill-chunk-size", "64", "--debug")
    with serve(f"scripted:{path}", *sizes) as served:
        yield served


@pytest.fixture(scope="session")
def demo():
    """A server with the demonstration model."""
    find = "from cvllm_jax.checkpoints.demo import find_demo_model; print(find_demo_model() or '')"
    path = subprocess.run([PYTHON, "-c", find], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    if not path:
        pytest.skip("the demo model is not installed")
    sizes = ("--max-sequence-length", "256", "--max-batch-size", "2", "--prefill-chunk-size", "64")
    with serve(path, *sizes) as served:
        yield served


@pytest.fixture
def anyio_backend():
    return "asyncio"
