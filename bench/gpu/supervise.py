"""The parent's side: each group of cases in a process of its own, under a limit of time.

A kernel that crashes or hangs takes its process and the device's context with it; the case that ran is recorded as
failed, and another process goes on with the next one.
"""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu.record import Record
from bench.machine import ROOT


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that share a process.

    Attributes:
      name: in the record.
      command: what runs, without the job.
      job: given to the process as JSON, with the names of the cases to skip.
      case_seconds: a case that takes longer is taken for hung.
      weight: its share of the part's time, beside those of the others.
      environment: variables to set.
    """

    name: str
    command: Sequence[str]
    job: dict[str, Any]
    case_seconds: float = 120.0
    weight: float = 1.0
    environment: dict[str, str] = field(default_factory=dict)


def run_groups(groups: Sequence[Group], record: Record, log: Path, *, budget: float) -> None:
    """Run groups within ``budget`` seconds. Time that one leaves goes to those after it, by their weights."""
    end = time.monotonic() + budget
    for index, group in enumerate(groups):
        now = time.monotonic()
        share = group.weight / sum(later.weight for later in groups[index:])
        _GroupRun(group, record, log).run(deadline=now + (end - now) * share)


class _GroupRun:
    def __init__(self, group: Group, record: Record, log: Path) -> None:
        self.group = group
        self.record = record
        self.log = log
        self.skip: list[str] = []
        self.left: list[str] | None = None
        """Cases that have not ended; None until the process has said what there is."""
        self.current: str | None = None
        self.began = 0.0

    def run(self, deadline: float) -> None:
        started = time.monotonic()
        self.record.start_group(self.group.name)
        while True:
            if time.monotonic() >= deadline:
                if self.left is None:
                    self.record.note(self.group.name, error="no time was left for this group")
                break
            dealt_with = len(self.skip)
            failure = self._run_process(deadline)
            if failure is None:
                break
            if self.current is not None:
                self._end("error", error=failure)
            if len(self.skip) == dealt_with:  # another process would end in the same way
                self.record.note(self.group.name, error=failure)
                break
            if not self.left:
                break
        for name in self.left or ():
            self.record.add(self.group.name, name, status="left out")
        self.record.note(self.group.name, seconds=round(time.monotonic() - started, 1))

    def _run_process(self, deadline: float) -> str | None:
        """Why the process ended early, or None if it had nothing left to do or ran out of time between cases."""
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        command = [*self.group.command, json.dumps({**self.group.job, "skip": self.skip})]
        with (
            self.log.open("a") as log,
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
                env=os.environ | self.group.environment,
            ) as process,
        ):  # fmt: skip
            reader = threading.Thread(target=_read, args=(process, events), daemon=True)
            reader.start()
            self.began = time.monotonic()
            try:
                return self._follow(process, events, deadline)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                reader.join()

    def _follow(
        self, process: "subprocess.Popen[str]", events: "queue.Queue[dict[str, Any] | None]", deadline: float
    ) -> str | None:
        while True:
            limit = min(deadline, self.began + self.group.case_seconds)
            try:
                event = events.get(timeout=max(0.01, limit - time.monotonic()))
            except queue.Empty:
                if limit == deadline:
                    return "its time was up" if self.current else "the time of its group was up"
                return f"it took longer than {self.group.case_seconds:.0f} s"
            if event is None:
                status = process.wait()
                return None if status == 0 else f"the process ended with status {status}: {self._last_line()}"
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        group, kind = self.group.name, event["event"]
        if kind == "facts":
            self.record.note(group, **event["facts"])
        elif kind == "cases":
            self.left = event["names"]
        elif kind == "begin":
            self.current, self.began = event["case"], time.monotonic()
        elif kind == "figures":
            self.record.add(group, event["case"], **event["figures"])
        elif kind == "error":
            self._end("error", error=event["error"])
        elif kind == "end":
            self._end("ok")

    def _end(self, status: str, **figures: Any) -> None:
        name, self.current = self.current, None
        assert name is not None and self.left is not None
        self.skip.append(name)
        self.left.remove(name)
        known = self.record.cases(self.group.name).get(name, {})
        if status == "ok" and known.get("status") == "wrong":
            status = "wrong"
        self.record.add(self.group.name, name, status=status, **figures)
        self.began = time.monotonic()
        print(f"{self.group.name}: {name}: {status}", *figures.values(), flush=True)

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


def _read(process: "subprocess.Popen[str]", events: "queue.Queue[dict[str, Any] | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        events.put(json.loads(line))
    events.put(None)
