"""Servers in processes of their own, from .venv; the clients beside them are in another environment."""

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"


def call(name, /, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


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
