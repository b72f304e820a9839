"""Servers in processes of their own, from .venv; the clients run beside them in .venv-clients (`make test-clients`)."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

if importlib.util.find_spec("langchain_openai") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test` runs without the clients

# before litellm is imported, which asks GitHub for prices otherwise
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

ROOT = Path(__file__).parents[2]
sys.path.append(str(Path(__file__).parent))  # importlib mode adds no folder by itself
PYTHON = ROOT / ".venv" / "bin" / "python"


def call(name, /, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


RULES = [
    {"when": r"(?i)\bweather\b", "say": call("get_weather", city="Paris")},
    {"when": "21 degrees", "say": "<think>\nThe tool says 21.\n</think>\n\nIt is 21 °C in Paris."},
    {"when": "Ada as JSON", "say": '{"name": "Ada", "age": 36}'},
    {"when": "Ada with Person", "say": call("Person", name="Ada", age=36)},
    {"when": "Ada with PartialPerson", "say": call("PartialPerson", name="Ada", age=36)},
    {"when": "Ada with final_result", "say": call("final_result", name="Ada", age=36)},
    {"when": "hello", "say": "Hello, wörld 👋🏽!"},
]


@dataclass(frozen=True)
class Served:
    """Where a client finds the server: ``base_url`` as the SDKs take it, and the model's name there."""

    base_url: str
    model: str


@contextmanager
def serve(model, *arguments):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "CVLLM_CACHE": str(ROOT / ".pytest_cache" / "cvllm-jax"),
        "COLUMNS": "200", "NO_COLOR": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [PYTHON, "-m", "cvllm_jax", "serve", model, *arguments, "--port", "0", "--device", "cpu"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ready = process.stdout.readline()
        assert "is ready on" in ready, ready
        url = re.search(r"http://[\d.:]+\d", ready)[0]
        yield Served(f"{url}/v1", Path(model.removeprefix("scripted:")).stem)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


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
