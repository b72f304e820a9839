"""Telling control tokens that a template writes from text that only looks like them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cvllm_jax.errors import TokenizationError

__all__ = ["ControlTextMask"]

_PRIVATE = re.compile("[\U000f0000-\U0010fffd]")
_FIRST_PRIVATE, _LAST_PRIVATE = 0x100000, 0x10FFFD


class ControlTextMask:
    """Masks control tokens spelled in the values that a template is given.

    Of every occurrence one character, the first, is replaced by a private one. The text keeps its length, can be
    trimmed, sliced, split and printed as JSON, and in the rendered prompt the private characters show which
    occurrences are text. Private characters that the values contain themselves are never used for it.

    A control token may also be put together from the end of one value and what follows it in the prompt: an end that
    begins a control token is masked too.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        self._tokens = frozenset(token for token in control_tokens if token.strip())
        self._beginnings = frozenset(token[:end] for token in self._tokens for end in range(1, len(token)))
        self._lengths = sorted({len(token) for token in self._tokens})
        # Whitespace stays itself, or trimming would see something else.
        self._masked = sorted({token.lstrip()[0] for token in self._tokens})
        firsts = "".join(sorted({token[0] for token in self._tokens}))
        self._candidate = re.compile(f"[{re.escape(firsts)}]") if firsts else None

    def mask(self, value: Any) -> tuple[Any, Mapping[int, str]]:
        """The value with its control tokens masked, and the table for ``str.translate`` that undoes it.

        The table is empty where there was nothing to mask.
        """
        if self._candidate is None or not self._occurs(value):
            return value, {}
        private = self._unused_characters(value)
        table = dict(zip(self._masked, private))
        return self._replace(value, table), {ord(mask): character for character, mask in table.items()}

    def _occurs(self, value: Any) -> bool:
        if isinstance(value, str):
            return bool(self._positions(value))
        if isinstance(value, dict):
            return any(self._occurs(key) or self._occurs(item) for key, item in value.items())
        return isinstance(value, list) and any(map(self._occurs, value))

    def _replace(self, value: Any, table: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            positions = self._positions(value)
            if not positions:
                return value
            characters = list(value)
            for position in positions:
                characters[position] = table.get(characters[position], characters[position])
            return "".join(characters)
        if isinstance(value, dict):
            return {self._replace(key, table): self._replace(item, table) for key, item in value.items()}
        if isinstance(value, list):
            return [self._replace(item, table) for item in value]
        return value

    def _positions(self, text: str) -> set[int]:
        """Where the masked character of each control token stands."""
        assert self._candidate is not None
        positions = set()
        end = len(text.rstrip())
        for match in self._candidate.finditer(text):
            start = match.start()
            found = next((n for n in self._lengths if text[start : start + n] in self._tokens), None)
            if found is None and end - start < self._lengths[-1] and text[start:end] in self._beginnings:
                found = end - start
            if found is not None:
                token = text[start : start + found]
                positions.add(start + len(token) - len(token.lstrip()))
        return positions

    def _unused_characters(self, value: Any) -> list[str]:
        used: set[str] = set()
        _collect_private(value, used)
        unused = []
        for code in range(_FIRST_PRIVATE, _LAST_PRIVATE + 1):
            if chr(code) not in used:
                unused.append(chr(code))
                if len(unused) == len(self._masked):
                    return unused
        raise TokenizationError(
            "the messages spell control tokens and use every private character of Unicode, so that none is left to "
            "tell these tokens from real ones",
            param="messages",
        )


def _collect_private(value: Any, used: set[str]) -> None:
    if isinstance(value, str):
        used.update(_PRIVATE.findall(value))
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect_private(key, used)
            _collect_private(item, used)
    elif isinstance(value, list):
        for item in value:
            _collect_private(item, used)
