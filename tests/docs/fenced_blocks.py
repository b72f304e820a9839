"""The fenced blocks of Markdown pages, and running those of one page in their order.

Blocks of Python and of sh run; one after a line ``<!-- not run: REASON -->`` does not, and the rendered page says so
in words where it matters. Python blocks of a page share their names, as in a session, and may await. A sh block that is
``cvllm-jax serve ...`` is a server, which runs until the next one or the end of the page.
"""

import ast
import asyncio
import inspect
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

__all__ = ["FencedBlock", "Page", "fenced_blocks"]

_OPENING = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: \S.*-->\n+\Z")
_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class FencedBlock:
    language: str
    code: str
    line: int
    """Of its first line of code, from 1."""
    not_run: bool


def fenced_blocks(text):
    """All fenced blocks of a page, in their order."""
    return [
        FencedBlock(
            match["language"],
            match["code"],
            text.count("\n", 0, match.start()) + 2,
            _NOT_RUN.search(text[: match.start()]) is not None,
        )
        for match in _OPENING.finditer(text)
    ]


class Page:
    """One page being run in a folder of its own."""

    def __init__(self, path):
        self._path = path
        self._names = {"__name__": "__main__"}
        self._server = None

    def run(self):
        try:
            for block in fenced_blocks(self._path.read_text(encoding="utf-8")):
                if block.not_run or block.language not in ("python", "sh"):
                    continue
                print(f"{self._path.name}:{block.line}", flush=True)
                if block.language == "python":
                    self._run_python(block)
                elif block.code.startswith("cvllm-jax serve"):
                    self._serve(block.code)
                else:
                    subprocess.run(["sh", "-eu", "-c", block.code], check=True, env=_environment())
        finally:
            self._stop()

    def _run_python(self, block):
        tree = ast.parse("\n" * (block.line - 1) + block.code, str(self._path))
        code = compile(tree, str(self._path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, self._names))
        else:
            exec(code, self._names)

    def _serve(self, command):
        self._stop()
        self._server = subprocess.Popen(["sh", "-c", f"exec {command}"], env=_environment())
        while self._health() != 200:
            assert self._server.poll() is None, f"{command} ended"
            time.sleep(0.1)

    @staticmethod
    def _health():
        try:
            return httpx.get(f"{_URL}/health", timeout=5).status_code
        except httpx.TransportError:
            return None

    def _stop(self):
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)
            self._server = None


def _environment():
    """With ``cvllm-jax`` and ``python`` of this interpreter first in the path."""
    bin_folder = Path.cwd() / ".commands"
    bin_folder.mkdir(exist_ok=True)
    for name, arguments in (("cvllm-jax", "-m cvllm_jax"), ("python", "")):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    return os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "CVLLM_STORE": ":memory:"}


if __name__ == "__main__":
    Page(Path(sys.argv[1])).run()
    shutil.rmtree(".commands", ignore_errors=True)
