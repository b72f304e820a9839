"""How long a start takes, with an empty cache and with what the first start left there, and the memory while serving.

``python -m bench.startup [MODEL]``. Every start is a process of its own, timed from its beginning; medians of three,
but for the cold start.
"""

from __future__ import annotations

import json
import operator
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from cvllm_jax.checkpoints.demo import find_demo_model

ROUNDS = 3
QUESTION = "What is the capital of France?"
IMPORT = "import time; t = time.perf_counter(); import cvllm_jax; print(time.perf_counter() - t)"
#: A process that has JAX and one array: what memory is counted from.
BARE = "import jax; jax.numpy.zeros(8).block_until_ready(); print(open('/proc/self/status').read())"


def main() -> None:
    model = str(sys.argv[1] if len(sys.argv) > 1 else find_demo_model() or "")
    if not model:
        sys.exit("name a model, or install the demo model: cvllm-jax demo")
    imports = [float(_python("-c", IMPORT)) for _ in range(ROUNDS)]
    print(f"import cvllm_jax: {statistics.median(imports):.2f} s", flush=True)
    bare = _anonymous(_python("-c", BARE))
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"CVLLM_CACHE": folder, "CVLLM_STORE": ":memory:"}
        with _server(model, environment) as (url, seconds, _):
            print(f"serve, cold: ready after {seconds:.1f} s", end="", flush=True)
            began = time.perf_counter()
            _wait_until_warm(url)
            print(f", every step loaded {time.perf_counter() - began:.1f} s later", flush=True)
        ready = []
        for _ in range(ROUNDS):
            with _server(model, environment) as (url, seconds, process):
                ready.append(seconds)
                _ask_all(url)
                _wait_until_warm(url)
                _ask_all(url)
                rise = _anonymous(Path(f"/proc/{process.pid}/status").read_text()) - bare
        print(f"serve, warm: ready after {statistics.median(ready):.1f} s ({_each(ready)})")
        first = [_first_text(model, environment) for _ in range(ROUNDS)]
        print(f"generate, warm: first text after {statistics.median(first):.1f} s ({_each(first)})")
        pool = int(_python(__file__, "--pool", model, environment=environment))
        limit = 2.2 * Path(model).stat().st_size + pool + 300e6 if Path(model).is_file() else None
        print(
            f"memory while serving: {rise / 1e6:.0f} MB more than a process with JAX and one array, "
            f"{pool / 1e6:.0f} MB of it the page pool" + (f"; limit {limit / 1e6:.0f} MB" if limit else "")
        )


def print_pool(model: str) -> None:
    """The bytes of the pool's pages."""
    from cvllm_jax import EngineConfig, InferenceEngine
    from cvllm_jax.engine.pool_sizes import page_bytes

    with InferenceEngine(EngineConfig(model_path=model)) as engine:
        settings = engine.runner.settings
        print(sum(map(operator.mul, settings.num_pages, page_bytes(engine.runner.config, settings.geometry))))


def _python(*arguments: str, environment: dict[str, str] | None = None) -> str:
    return subprocess.run(
        [sys.executable, *arguments], check=True, text=True, stdout=subprocess.PIPE, env=environment
    ).stdout


def _anonymous(status: str) -> int:
    """Bytes of anonymous memory in the text of a process's status."""
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None, "this system does not tell a process's anonymous memory"
    return int(found[1]) * 1024


@contextmanager
def _server(model: str, environment: dict[str, str]) -> Iterator[tuple[str, float, subprocess.Popen[str]]]:
    """A server that is ready: its URL, the seconds that took, and its process."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cvllm_jax", "serve", model, "--port", "0"], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = next((m for line in process.stdout if (m := re.search(r"is ready on (\S+)", line))), None)
        if found is None:
            raise RuntimeError(f"the server ended with status {process.wait()}")
        yield found[1], time.perf_counter() - began, process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _wait_until_warm(url: str) -> None:
    while "warming_up" in json.load(urlopen(f"{url}/health")):
        time.sleep(0.1)


def _ask_all(url: str) -> None:
    """Sixteen chats at once."""
    body: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 32}
    headers = {"Content-Type": "application/json"}
    name = json.load(urlopen(f"{url}/v1/models"))["data"][0]["id"]
    request = Request(f"{url}/v1/chat/completions", json.dumps(body | {"model": name}).encode(), headers)
    with ThreadPoolExecutor(16) as pool:
        for answer in pool.map(lambda _: json.load(urlopen(request)), range(16)):
            assert answer["choices"]


def _first_text(model: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cvllm_jax", "generate", QUESTION, "-m", model, "--temperature", "0"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.stdout.read()
    process.wait()
    return seconds


def _each(samples: list[float]) -> str:
    return ", ".join(f"{sample:.1f}" for sample in samples)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pool"]:
        print_pool(sys.argv[2])
    else:
        main()
