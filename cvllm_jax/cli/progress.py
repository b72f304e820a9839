"""Progress bars for what takes long before the first answer: download, load, compile."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["ProgressBars"]


class ProgressBars:
    """An ``EngineConfig.progress`` that draws one bar a stage on standard error.

    Where that is no terminal, each stage is one line when it begins. Use it as a context manager;
    it may be called from any thread.
    """

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
            if not self._is_terminal:
                print(f"{stage} ...", file=sys.stderr, flush=True)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    def close(self) -> None:
        """Take the bars away. What is reported later is not drawn."""
        if self._bars.live.is_started:  # else stopping prints an empty line
            self._bars.stop()

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
