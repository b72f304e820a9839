"""The child's side of a measurement: every figure goes to the parent at once, as a line of JSON.

Needs nothing but the standard library, since peers run in environments of their own.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any


class Report:
    """Lines to the parent. What libraries print goes to stderr instead, so that it cannot mix with them."""

    def __init__(self) -> None:
        self._lines = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def tell(self, event: str, **content: Any) -> None:
        print(json.dumps({"event": event, **content}), file=self._lines, flush=True)

    def facts(self, **facts: Any) -> None:
        self.tell("facts", facts=facts)

    def run(
        self,
        cases: Iterable[tuple[str, Callable[[Callable[..., None]], None]]],
        skip: Iterable[str],
        is_usable: Callable[[], bool] = lambda: True,
    ) -> None:
        """Measure cases one after another; one that raises is told as an error and the next one goes on.

        Arguments:
          cases: of each the name, and what measures it: called with ``add(**figures)``.
          skip: names of cases that an earlier process has dealt with.
          is_usable: asked after an error; the process ends where the device has failed for good, and the parent
            starts another for the cases that are left.
        """
        left = [(name, measure) for name, measure in cases if name not in set(skip)]
        self.tell("cases", names=[name for name, _ in left])
        for name, measure in left:
            self.tell("begin", case=name)

            def add(case: str = name, **figures: Any) -> None:
                self.tell("figures", case=case, figures=figures)

            try:
                measure(add)
            except Exception as error:
                traceback.print_exc()
                self.tell("error", case=name, error=one_line(error))
                if not is_usable():
                    sys.exit("the device has failed")
            else:
                self.tell("end", case=name)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def job() -> dict[str, Any]:
    """What the parent wants of this process: its one argument."""
    return json.loads(sys.argv[1])
