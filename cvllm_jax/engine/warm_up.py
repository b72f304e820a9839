"""Loading the steps that are listed beforehand, so that no request waits for a compiler.

On a CPU an engine is ready with few steps, which serve any request; a thread loads the others meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from cvllm_jax.config import Progress
from cvllm_jax.engine.devices import return_freed_memory
from cvllm_jax.engine.steps import Steps

__all__ = ["ListedStep", "WarmUp", "listed_steps"]

log = logging.getLogger("cvllm_jax.engine")

_STAGE = "compiling steps"


@dataclass(frozen=True, slots=True)
class ListedStep:
    """A step that is loaded before it is needed."""

    load: Callable[[], Any]
    """Gives the program."""
    padding: np.ndarray | None = None
    """A vector without sequences, on which it runs to be at its best; None if it need not run."""
    rows: int = 0


def listed_steps(steps: Steps) -> tuple[list[ListedStep], list[ListedStep]]:
    """What is loaded before an engine is ready, and what after that, the most useful first."""
    shapes = steps.settings.steps
    prefills = {
        layout.tokens: [ListedStep(partial(steps.prefill, layout), layout.pack([]), layout.blocks)]
        for layout in steps.prefill_layouts
    }
    decodes = {
        layout.rows: [
            ListedStep(partial(steps.decode, layout, form, count), layout.pack([]), layout.rows)
            for form in shapes.decode_forms
            for count in shapes.decode_steps
        ]
        for layout in steps.decode_layouts
    }
    first = [ListedStep(steps.admit)]
    if shapes.first_prefill is None:
        return [step for group in (*prefills.values(), *decodes.values()) for step in group] + first, []
    first = prefills.pop(shapes.first_prefill) + decodes.pop(shapes.first_decode) + first
    rest = []
    for sizes, wanted in ((decodes, min), (decodes, max), (prefills, max)):  # one sequence alone, many, long prompts
        if sizes:
            rest += sizes.pop(wanted(sizes))
    return first, rest + [step for group in (*prefills.values(), *decodes.values()) for step in group]


class WarmUp:
    """Loads the listed steps and runs each on padding, until a GPU has recorded it.

    Arguments:
      run: runs a program on padding: its vector and number of rows.
    """

    def __init__(self, steps: Steps, run: Callable[[Any, np.ndarray, int], jax.Array]) -> None:
        self._steps = steps
        self._run = run
        self._closed = False
        self._thread: threading.Thread | None = None

    @staticmethod
    def prefetch(steps: Steps) -> None:
        """Begin to load what comes first, in threads; who needs such a step waits for it."""
        pool = ThreadPoolExecutor(2, thread_name_prefix="cvllm-jax steps")  # one compiler keeps no two cores busy
        for step in listed_steps(steps)[0]:
            pool.submit(step.load)  # what it raises is raised again where the step is needed
        pool.shutdown(wait=False)

    def start(self, progress: Progress | None = None) -> None:
        """Load what comes first; the others follow in a thread."""
        first, rest = listed_steps(self._steps)
        for done, step in enumerate(first):
            if progress is not None:
                progress(_STAGE, done, len(first))
            self._load(step)
        if progress is not None:
            progress(_STAGE, len(first), len(first))
        return_freed_memory()
        self._steps.only_loaded = True
        if rest:
            self._thread = threading.Thread(target=self._load_all, args=(rest,), name="cvllm-jax warm-up", daemon=True)
            self._thread.start()

    @property
    def loading(self) -> bool:
        """Whether the thread is still at it."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every step is loaded; False if that took longer."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.loading

    def close(self) -> None:
        """Load nothing more. Waits for what is being compiled, which cannot be interrupted."""
        self._closed = True
        self.wait()

    def _load_all(self, steps: list[ListedStep]) -> None:
        for step in steps:
            if self._closed:
                break
            try:
                self._load(step)
            except Exception as error:  # requests take the steps that there are
                if not self._closed:
                    log.warning("a step could not be loaded, others do its work: %s", error)
        return_freed_memory()

    def _load(self, step: ListedStep) -> None:
        program = step.load()
        if step.padding is not None:
            for _ in range(self._steps.settings.steps.warm_up_runs):
                if not self._closed:
                    jax.block_until_ready(self._run(program, step.padding, step.rows))
