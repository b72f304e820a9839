"""What an operation's ``bench.py`` says about its cases, for ``python -m bench.gpu`` to check and time.

A ``bench.py`` has one public function, ``cases(*, tiny: bool = False)``, that yields a :class:`Case` for each shape
worth a figure, the most telling ones first: where time runs out the last are left out. ``tiny=True`` yields a case
for every code path with shapes that Mosaic's interpreter does in seconds; the harness turns the interpreter on
(``plgpu.force_gpu_interpret_mode``), so a case asks for its kernel by name in both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

__all__ = ["Case"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape of one kernel: how to make inputs, what to run, what it costs at least.

    ``kernel``, ``reference`` and ``peers`` take the arrays that ``inputs`` returns and can be traced. The harness
    makes several sets of inputs, as many as it takes to be larger than the GPU's cache, and calls the kernel on each
    of them in one compiled program.

    Attributes:
      name: what stands in the table, for example ``"decode 64x4096 bf16 page 16"``; unique within its operation.
      inputs: makes one set of arrays from a PRNG key, on the device. Places that the kernel must not look at
        (unused pages, padding) hold NaN where their type has one.
      kernel: the kernel itself, by name and not through "auto", so that a refusal shows as this case's error.
      reference: the definition in XLA operations, upcast to float32 where that makes it more exact.
      bytes_moved: what must at least be read from and written to the device's memory.
      flops: floating-point operations that must be done; 0 where memory alone limits.
      tolerance: largest allowed ``norm(kernel - reference) / norm(reference)``; 0 means bit for bit.
      donated: how many leading arrays the kernel overwrites. It then returns their new versions, and nothing else,
        as a tuple in the same order (or one array for one).
      checked: picks what is to be compared from an output, for outputs with meaningless parts.
      spot_check: ``spot_check(output, *arrays)`` gives the relative error of some part of the output against numpy in
        float64, all arguments numpy arrays; None where the reference is enough (a copy has no rounding).
      peers: other implementations of the same operation on the same arrays, timed beside the kernel. Not for
        ``donated`` cases.
      reference_is_timed: whether the reference is an implementation worth a figure, and not only a definition.
    """

    name: str
    inputs: Callable[[jax.Array], tuple[jax.Array, ...]]
    kernel: Callable[..., Any]
    reference: Callable[..., Any]
    bytes_moved: int
    flops: int = 0
    tolerance: float = 1e-2
    donated: int = 0
    checked: Callable[[Any], Any] = lambda output: output
    spot_check: Callable[..., float] | None = None
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    reference_is_timed: bool = True
