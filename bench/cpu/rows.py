"""What is compared on a CPU, and what the project wants to reach in each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
      case: the name of the case or figure in a record.
      unit: of the samples; more of a rate is better, less of a time.
      least, aim: ours over the peer's that are wanted at least and aimed at.
    """

    case: str
    title: str
    unit: str
    least: float
    aim: float

    @property
    def more_is_better(self) -> bool:
        return self.unit != "ms"

    def reached(self, ratio: float, wanted: float) -> bool:
        return ratio >= wanted if self.more_is_better else ratio <= wanted


ROWS = (
    Row("prefill of 512", "prefill, 512 tokens", "tokens/s", 1.5, 3.0),
    Row("decode 1 at 512", "decode, 1 sequence at depth 512", "tokens/s", 1.0, 1.5),
    Row("decode 8 at 64", "decode, 8 sequences at depth 64", "tokens/s", 1.5, 2.5),
    Row("serving throughput", "serving, 16 concurrent chats: throughput", "tokens/s", 2.0, 4.0),
    Row("serving first token p95", "serving, 16 concurrent chats: p95 time to first token", "ms", 0.5, 0.25),
    Row("shared prefix first token", "time to first token of a second request that shares a 2k prefix", "ms", 1.0, 0.5),
)
