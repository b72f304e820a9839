"""Reading a checkpoint's ``config.json`` with errors that name the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from cvllm_jax.errors import ModelLoadError

__all__ = ["ConfigReader"]


class ConfigReader:
    """Typed access to untrusted JSON: every wrong or missing value is one ModelLoadError that names its key."""

    #: Sizes past this are a corrupt or hostile file and would only fail later, in an allocation.
    LIMIT = 2**24

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def positive(self, key: str, default: int | None = None, *, most: int = LIMIT) -> int:
        value = self._config.get(key)
        if value is None:
            value = default
        if value is None:
            self.refuse(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            self.refuse(f"{key} must be a whole number from 1 to {most}, not {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.refuse(f"{key} must be a number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(f"{key} must be true or false, not {value!r}")
        return value

    def require(self, key: str, only: object) -> None:
        """Refuse an option whose other values this port does not implement."""
        value = self._config.get(key, only)
        if value is not None and value != only:
            self.refuse(f"{key}={value!r} is not supported; only {only!r} is")

    def refuse(self, reason: str) -> NoReturn:
        raise ModelLoadError(f"the model's configuration cannot be used: {reason}")
