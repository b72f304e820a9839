"""How a checkpoint's tensor names become the engine's: one table of rules a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GgufArchitecture", "Interleaved", "PerExpert", "PerHead", "Plus", "Rule", "Source", "Stacked"]


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A tensor whose rows lie as interleaved rope wants them.

    GGML's llama files rotate rows 2j and 2j+1 of a head together, the Hugging Face layout rows j and
    j + R/2 of the R that are rotated. The conversion reordered the rows of q and k; loading undoes that.
    """

    name: str
    heads: str
    """The key of the configuration that holds the tensor's number of heads."""
    rotated: float = 1.0
    """The share of a head that is rotated, where ``partial_rotary_factor`` is absent."""


@dataclass(frozen=True, slots=True)
class Plus:
    """A tensor that is stored less a constant: gains of norms that are stored as their distance from 1."""

    name: str
    amount: float


@dataclass(frozen=True, slots=True)
class PerHead:
    """A vector for each head, by a name in which ``{h}`` stands for the head's number."""

    name: str
    heads: str
    """The key of the configuration that holds the number of heads."""


@dataclass(frozen=True, slots=True)
class PerExpert:
    """A matrix for each expert, by a name in which ``{e}`` stands for the expert's number."""

    name: str


@dataclass(frozen=True, slots=True)
class Stacked:
    """The matrices of all experts in one tensor ``[E, out, in]``; a plain name says the same without the options."""

    name: str
    transposed: bool = False
    """Whether they are stored ``[E, in, out]``."""
    alternating: bool = False
    """Whether rows 2j and 2j + 1 are rows j of an expert's gate and of its other half."""


type Source = str | Interleaved | PerExpert | PerHead | Plus | Stacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One target and the tensors it is made of, concatenated along rows, for experts along the rows of each.

    ``{i}`` stands for the layer's number, in the target and in the sources. Of several rules for one target the
    first counts whose sources are all there.
    """

    target: str | None
    """Dotted path of a weight; None for tensors that a file may have and nobody needs."""
    hf: tuple[Source, ...] = ()
    gguf: tuple[Source, ...] = ()
    may_be_unused: bool = False
    """The sources may be there without being wanted, like the head of a model with tied embeddings."""
    may_have_more_layers: bool = False
    """The same of sources whose layer comes after those that the configuration counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufArchitecture:
    """What makes a ``config.json`` of the metadata of one architecture's GGUF files."""

    name: str
    """``general.architecture``."""
    architecture: str
    """The class name in transformers."""
    variants: tuple[str, ...] = ()
    """Other classes that ``derive`` may name in its place."""
    experts: str | None = None
    """What ``config.json`` calls the number of experts; None: the architecture is the one without."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """What ``config.json`` says of this architecture and GGUF leaves unsaid."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Further keys of ``config.json``, each with the GGUF key, less the architecture's name, that has its value."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Further keys of ``config.json`` that are true where the file has a tensor of the name beside them."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """Further keys of ``config.json`` that are the number of rows of the tensor beside them."""
    causal: bool = True
    """Whether a token sees those before it alone."""
    norm_eps: str = "rms_norm_eps"
    """What ``config.json`` calls the number that keeps norms from dividing by zero."""
    values_in_keys: bool = False
    """Whether heads are those of latent attention, whose values are a part of their keys."""
    derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Further keys of ``config.json`` from the others, where llama.cpp has them in its code."""
