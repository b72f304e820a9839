"""Texts that wait to be embedded, and the thread that runs them in steps."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cvllm_jax.engine.encoder import EncoderRunner
from cvllm_jax.errors import CancelledError, GenerationError, QueueFullError

__all__ = ["EmbeddingQueue"]

log = logging.getLogger("cvllm_jax.engine")


@dataclass(slots=True, eq=False)
class _Call:
    """The texts of one caller."""

    texts: list[list[int]]
    left: int
    future: Future[np.ndarray] = field(default_factory=Future)
    vectors: np.ndarray | None = None


class _Text(NamedTuple):
    """One text: its place in its call, and its number among all that came."""

    number: int
    call: _Call
    place: int

    @property
    def tokens(self) -> list[int]:
        return self.call.texts[self.place]


class EmbeddingQueue:
    """Calls that wait, and the thread that runs their texts in steps. Every method may be called from any thread."""

    def __init__(self, runner: EncoderRunner, most: int) -> None:
        self.running = self.completed = self.tokens = self.steps = 0
        self._runner, self._most = runner, most
        self._changed = threading.Condition()  # guards what follows
        self._texts: dict[int, deque[_Text]] = {shape.length: deque() for shape in runner.shapes}
        """By the length that they are padded to, the oldest first."""
        self._numbers = itertools.count()
        self._calls = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        return sum(map(len, self._texts.values()))

    def submit(self, texts: list[list[int]]) -> Future[np.ndarray]:
        call = _Call(texts, len(texts))
        with self._changed:
            if self._closed:
                raise CancelledError("the engine is closed")
            if self._calls >= self._most:
                raise QueueFullError(f"the engine is full: {self._calls} calls are waiting, and it takes no more")
            self._calls += 1
            call.future.add_done_callback(self._ended)
            for index, tokens in enumerate(texts):
                length = self._runner.shape_for(len(tokens), 1).length
                self._texts[length].append(_Text(next(self._numbers), call, index))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cvllm-jax embedding", daemon=True)
                self._thread.start()
            self._changed.notify()
        return call.future

    def close(self) -> None:
        """End every call as cancelled and stop the thread. A second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        if self._thread is None:
            self._runner.close()
        elif self._thread is not threading.current_thread():  # it may be, when it drops the last reference
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                vectors = self._runner.embed([text.tokens for text in batch])
            except Exception as error:  # of the device: the next step may succeed
                log.exception("an embedding step failed; its calls end")
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                for text in batch:
                    _fail(text.call, GenerationError(f"a step failed on the device: {reason}"))
            else:
                for text, vector in zip(batch, vectors, strict=True):
                    self._deliver(text, vector)
            self.steps += 1
            self.running = 0
        for text in itertools.chain.from_iterable(self._texts.values()):
            _fail(text.call, CancelledError("the engine was closed"))
        self._texts.clear()
        self._runner.close()

    def _next_batch(self) -> list[_Text]:
        """The oldest text, and others that are padded to the same length; empty when the engine closes."""
        with self._changed:
            while not self._closed:
                for texts in self._texts.values():
                    while texts and texts[0].call.future.done():
                        texts.popleft()  # its call was cancelled, or failed with an earlier text
                waiting = [texts for texts in self._texts.values() if texts]
                if waiting:
                    oldest = min(waiting, key=lambda texts: texts[0].number)
                    rows = self._runner.shape_for(len(oldest[0].tokens), len(oldest)).rows
                    batch = [oldest.popleft() for _ in range(min(rows, len(oldest)))]
                    self.running = len(batch)
                    return batch
                self._changed.wait()
            return []

    def _deliver(self, text: _Text, vector: np.ndarray) -> None:
        call = text.call
        if call.vectors is None:
            call.vectors = np.empty((len(call.texts), len(vector)), np.float32)
        call.vectors[text.place] = vector
        call.left -= 1
        self.tokens += len(text.tokens)
        if not call.left:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                call.future.set_result(call.vectors)

    def _ended(self, _: Future[np.ndarray]) -> None:
        with self._changed:
            self._calls -= 1
            self.completed += 1


def _fail(call: _Call, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        call.future.set_exception(error)
