"""A measured engine in a process of its own: jobs come as JSON lines on stdin, answers go to stdout.

Needs nothing but the standard library, since the reference worker runs in another environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

#: Given a job, the number of tokens, the seconds they took and each sequence's new tokens.
Measure = Callable[[dict[str, Any]], tuple[int, float, list[list[int]]]]


def work(start: Callable[[], tuple[Measure, dict[str, Any]]]) -> None:
    """The worker's side: ``start`` loads the engine and gives its measure, and facts for the record."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    measure, facts = start()
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line))), file=answers, flush=True)


class Worker:
    """The driver's side. The engine loads while the driver does other things; ``facts`` and ``run`` wait for it."""

    def __init__(
        self, command: Sequence[str], folder: Path, *, environment: Mapping[str, str] | None = None, log: Any = None
    ) -> None:
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | dict(environment or {}),
        )  # fmt: skip

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the engine says of itself once it is loaded.

        Raises:
          RuntimeError: it ended instead.
        """
        return self._answer()

    def run(self, job: dict[str, Any]) -> tuple[float, list[list[int]]]:
        """Tokens a second over one job, and each sequence's new tokens."""
        assert self.facts is not None  # they come first
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        tokens, seconds, answers = self._answer()
        return tokens / seconds, answers

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._process.args)} ended without an answer")
        return json.loads(line)
