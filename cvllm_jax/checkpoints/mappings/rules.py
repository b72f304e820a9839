"""How a checkpoint's tensor names become the engine's: one table of rules a family."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Interleaved", "Rule", "Source"]


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A tensor whose rows lie as GGML's interleaved rope wants them.

    GGML's llama files rotate rows 2j and 2j+1 of a head together, the Hugging Face layout rows j and
    j + H/2. The conversion reordered the rows of q and k; loading undoes that.
    """

    name: str
    heads: str
    """The key of the configuration that holds the tensor's number of heads."""


type Source = str | Interleaved


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One target and the tensors it is made of, concatenated along rows.

    ``{i}`` stands for the layer's number, in the target and in the sources.
    """

    target: str | None
    """Dotted path of a weight; None for tensors that a file may have and nobody needs."""
    hf: tuple[Source, ...] = ()
    gguf: tuple[Source, ...] = ()
    may_be_unused: bool = False
    """The sources may be there without being wanted, like the head of a model with tied embeddings."""
