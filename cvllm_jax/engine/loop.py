"""The serving loop: plan a step, dispatch it, then read the step before it.

Overlap comes from JAX's asynchronous dispatch: the device works on step t + 1 while the host reads the tokens of step
t, turns them into text and hands them out. One driver at a time runs the loop: the background thread, or a caller of
``step()``, who gets no overlap because the updates of a step are returned when it ends.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections import deque

from cvllm_jax.engine.plan import Plan
from cvllm_jax.engine.runner import DispatchedStep, Runner
from cvllm_jax.engine.scheduler import Scheduler
from cvllm_jax.engine.sequence import Sequence
from cvllm_jax.errors import CancelledError, ConfigError, EngineStoppedError, GenerationError, QueueFullError
from cvllm_jax.params import FinishReason, RequestUpdate

__all__ = ["Driver", "EngineLoop"]

log = logging.getLogger("cvllm_jax.engine")


class Driver(enum.Enum):
    """Who runs the steps of the requests that are in the engine now."""

    BACKGROUND = "the background loop"
    CALLER = "step()"


class EngineLoop:
    """Owns the scheduler and the runner; every public method may be called from any thread."""

    def __init__(self, scheduler: Scheduler, runner: Runner, *, max_queue_size: int) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.steps = 0
        self._max_queue_size = max_queue_size
        self._changed = threading.Condition()  # guards what follows
        self._inbox: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._open: dict[int, Sequence] = {}
        self._driver: Driver | None = None
        self._closed = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stepping = threading.Lock()  # held while a step is planned, dispatched or read
        self._dispatched: deque[DispatchedStep] = deque()

    @property
    def waiting(self) -> int:
        return len(self.scheduler.waiting) + len(self._inbox)

    @property
    def failure(self) -> str | None:
        """What stopped the loop for good, in one line."""
        return None if self._failure is None else _first_line(self._failure)

    # --- requests ---

    def submit(self, sequence: Sequence, driver: Driver) -> None:
        """Queue a request. Its ``report`` is called from the thread that drives the loop."""
        with self._changed:
            self._check_driver(driver)
            limit = self.runner.settings.max_batch_size + self._max_queue_size
            if len(self._open) >= limit:
                raise QueueFullError(
                    f"the engine is full: {len(self._open)} requests are running or waiting, and it takes "
                    f"{self.runner.settings.max_batch_size} at a time and {self._max_queue_size} in its queue"
                )
            deliver = sequence.report

            def report(update: RequestUpdate) -> None:
                if not isinstance(update, RequestUpdate.Token):
                    with self._changed:
                        self._open.pop(sequence.handle.id, None)
                deliver(update)

            sequence.report = report
            self._driver = driver
            self._open[sequence.handle.id] = sequence
            self._inbox.append(sequence)
            if driver is Driver.BACKGROUND and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cvllm-jax engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel(self, handle_id: int) -> bool:
        """End a request at the next step; False if it has ended already."""
        with self._changed:
            sequence = self._open.get(handle_id)
            if sequence is not None:
                self._cancelled.append(sequence)
                self._changed.notify_all()
            return sequence is not None

    def _check_driver(self, driver: Driver) -> None:
        if self._failure is not None:
            raise EngineStoppedError(f"the engine has stopped: {self.failure}") from self._failure
        if self._closed:
            raise CancelledError("the engine is closed")
        if self._open and self._driver is not driver and self._driver is not None:
            raise ConfigError(
                f"{len(self._open)} requests of this engine are run by {self._driver.value}; "
                f"{driver.value} can take over when they have ended"
            )

    # --- steps ---

    def step(self) -> bool:
        """Run one step to its end, for callers with a loop of their own; False if there was nothing to do."""
        with self._changed:
            self._check_driver(Driver.CALLER)
        with self._stepping:
            while self._dispatched:  # what the background loop left behind
                self._read_oldest()
            return self._iterate(ahead=0)

    def _run(self) -> None:
        """The background thread."""
        try:
            while self._wait_for_work():
                with self._stepping:
                    self._iterate(ahead=1)
        except Exception as error:  # a defect, or a device that is gone: nobody may wait for ever
            log.exception("the engine has stopped")
            self._failure = error
        self._end()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when the engine closes."""
        with self._changed:
            while not self._closed and not self._has_work():
                self._changed.wait()
            return not self._closed

    def _has_work(self) -> bool:
        if self._driver is not Driver.BACKGROUND:
            return False
        return bool(self._inbox or self._cancelled or self._dispatched or not self.scheduler.idle)

    def _iterate(self, ahead: int) -> bool:
        """Plan and dispatch a step, then read steps until at most ``ahead`` are unread."""
        self._take_messages()
        waits = self.scheduler.waits_for_tokens
        halves = waits and ahead > 0 and self.runner.halves and self.scheduler.waits_for_masks
        while self._dispatched and waits and not halves:
            self._read_oldest()
        plan = self.scheduler.plan(masks_follow=halves)
        if plan is not None:
            try:
                if halves and plan.decode:
                    self._dispatch_halves(plan)
                else:
                    self._dispatched.append(self.runner.dispatch(plan))
            except Exception as error:
                while self._dispatched:  # steps before the one that failed may be whole
                    self._read_oldest()
                self._recover(error)
            self.steps += 1
        worked = bool(self._dispatched)
        while len(self._dispatched) > (ahead if plan is not None else 0):
            self._read_oldest()
        return worked

    def _dispatch_halves(self, plan: Plan) -> None:
        """The device computes the logits of a step while the host reads the tokens before it and makes masks."""
        started = self.runner.start(plan)
        while self._dispatched:
            self._read_oldest()
        if self.scheduler.planned:  # else a step before this one failed, and this one with it
            self._dispatched.append(self.runner.choose(started, self.scheduler.masks()))

    def _take_messages(self) -> None:
        with self._changed:
            added, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for sequence in added:
            self.scheduler.add(sequence)
        for sequence in cancelled:
            self.scheduler.cancel(sequence)

    def _read_oldest(self) -> None:
        step = self._dispatched.popleft()
        try:
            output = self.runner.read(step)
        except Exception as error:
            self._recover(error)
        else:
            self.scheduler.commit(output)

    def _recover(self, error: Exception) -> None:
        """A step raised: the donated buffers are gone, and with them every younger step."""
        log.error("a step failed; its requests end and all others start over", exc_info=error)
        self._dispatched.clear()
        self.runner.reset()
        self.scheduler.fail(GenerationError(f"a step failed on the device: {_first_line(error)}"))

    def close(self) -> None:
        """End every request as cancelled and stop the thread. A second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self._thread is None:
            self._end()
        elif self._thread is not threading.current_thread():  # it may be, when it drops the last reference
            self._thread.join()

    def _end(self) -> None:
        """End what is left and free the device's memory; the thread does it if there is one."""
        with self._stepping:
            self._take_messages()
            if self._failure is None:
                self.scheduler.end_all(FinishReason.Cancelled)
            else:
                message = f"the engine has stopped: {self.failure}"
                for sequence in list(self._open.values()):  # the scheduler may be inconsistent
                    sequence.finish(FinishReason.Error(message), EngineStoppedError(message))
            self._dispatched.clear()
            self.runner.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
