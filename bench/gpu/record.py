"""What one run has measured so far, on disk after every figure."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

#: A case's figures, by name; ``status`` is one of "ok", "wrong", "error" and "left out".
Figures = dict[str, Any]


class Record:
    """A JSON file with the facts of the run and the cases of every group.

    A file that is there already is continued, so that the parts of a benchmark can run one by one: a group that runs
    again replaces its old figures, everything else stays.

    Arguments:
      path: where to write; each write replaces the file as a whole.
      facts: what the run was measured on and with; they replace those of a run before.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        before = json.loads(path.read_text()) if path.exists() else {}
        self.data: dict[str, Any] = {
            **facts,
            "ceilings": before.get("ceilings", []),
            "groups": before.get("groups", {}),
        }
        self._ceilings_before = len(self.data["ceilings"])

    def add_ceilings(self, when: str, figures: Figures) -> None:
        self.data["ceilings"].append({"when": when, **figures})
        self._write()

    @property
    def ceilings(self) -> Figures:
        """What copying and multiplying reached at the start of this run; empty where that failed."""
        return next(iter(self.data["ceilings"][self._ceilings_before :]), {})

    def start_group(self, group: str) -> None:
        self.data["groups"][group] = {"cases": {}}
        self._write()

    def drop_group(self, group: str) -> None:
        del self.data["groups"][group]
        self._write()

    def note(self, group: str, **facts: Any) -> None:
        """Facts of a whole group: how long it took, why it failed."""
        self.data["groups"][group].update(facts)
        self._write()

    def add(self, group: str, case: str, **figures: Any) -> None:
        """Figures of a case, with what follows from them and the ceilings of this run."""
        known = self.cases(group).setdefault(case, {})
        known.update(figures)
        known.update(derived(known, self.ceilings))
        self._write()

    def cases(self, group: str) -> dict[str, Figures]:
        cases: dict[str, Figures] = self.data["groups"][group]["cases"]
        return cases

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as file:
            json.dump(self.data, file, indent=1)
            file.write("\n")
        os.replace(file.name, self.path)


def derived(figures: Figures, ceilings: Figures) -> Figures:
    """Rates, and their shares of what copying and multiplying reach on the same device."""
    found: Figures = {}
    seconds = figures.get("seconds")
    if not seconds:
        return found
    for amount, rate, ceiling, share in (
        ("bytes_moved", "bytes_per_second", "copy_bytes_per_second", "of_copy"),
        ("flops", "flops_per_second", "matmul_flops_per_second", "of_matmul"),
    ):
        if figures.get(amount):
            found[rate] = figures[amount] / seconds
            if ceilings.get(ceiling):
                found[share] = found[rate] / ceilings[ceiling]
    return found
