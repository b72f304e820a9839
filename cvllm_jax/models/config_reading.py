"""Reading a checkpoint's ``config.json`` with errors that name the key."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from cvllm_jax.errors import ModelLoadError, shown
from cvllm_jax.models.layers import ACTIVATIONS

__all__ = ["FULL", "SLIDING", "ConfigReader"]

#: Kinds of attention layers, as ``layer_types`` names them.
LAYER_TYPES = FULL, SLIDING = "full_attention", "sliding_attention"


class ConfigReader:
    """Typed access to untrusted JSON: every wrong or missing value is one ModelLoadError that names its key.

    Arguments:
      defaults: the values of absent keys, where the family's class in transformers has some.
    """

    #: Sizes past this are a corrupt or hostile file and would only fail later, in an allocation.
    LIMIT = 2**24

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.config = {**defaults, **config}

    def positive(self, key: str, default: int | None = None, *, most: int = LIMIT) -> int:
        value = self.config.get(key)
        if value is None:
            value = default
        if value is None:
            self.refuse(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            self.refuse(f"{key} must be a whole number from 1 to {most}, not {shown(value)}")
        return value

    def whole(self, key: str, default: int, *, most: int = LIMIT) -> int:
        """A whole number from 0 up."""
        return 0 if self.config.get(key) == 0 else self.positive(key, default, most=most)

    def optional_positive_number(self, key: str) -> float | None:
        """A number above 0, or None for null."""
        return None if self.config.get(key) is None else self.positive_number(key)

    def positive_number(self, key: str, default: float = 0.0) -> float:
        value = self.number(key, default)
        if value <= 0:
            self.refuse(f"{key} must be more than 0, not {value}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            self.refuse(f"{key} must be a number, not {shown(value)}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(f"{key} must be true or false, not {shown(value)}")
        return value

    def activation(self, key: str, default: str) -> str:
        value = self.config.get(key) or default
        if not isinstance(value, str) or value not in ACTIVATIONS:
            self.refuse(f"{key}={value!r:.80} is not supported; {', '.join(ACTIVATIONS)} are")
        return value

    def layer_types(self, default: Sequence[str], kinds: Sequence[str] = LAYER_TYPES) -> tuple[str, ...]:
        """``layer_types``, one for each layer, of the kinds that the family has; ``default`` has as many."""
        value = self.config.get("layer_types")
        if value is None:
            return tuple(default)
        if not isinstance(value, list) or len(value) != len(default):
            self.refuse(f"layer_types must be a list of {len(default)} kinds of layers, not {value!r:.80}")
        if other := [kind for kind in value if kind not in kinds]:
            self.refuse(f"layers of type {other[0]!r:.80} are not supported; {' and '.join(kinds)} are")
        return tuple(value)

    def require(self, key: str, only: object) -> None:
        """Refuse an option whose other values this port does not implement."""
        value = self.config.get(key, only)
        if value is not None and value != only:
            self.refuse(f"{key}={shown(value)} is not supported; only {only!r} is")

    def refuse(self, reason: str) -> NoReturn:
        raise ModelLoadError(f"the model's configuration cannot be used: {reason}")
