"""What a request may ask that this version does not do, and what it may say about it all the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import ChatCompletionRequest

__all__ = ["log_unknown_names", "refuse_unsupported"]

_log = logging.getLogger(__name__)

# field -> values that ask for nothing; None always does
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "verbosity": ("medium",),
    "best_of": (1,),
    "echo": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_grammar": (),
    "guided_choice": (),
}

# field -> the one that does the same
_INSTEAD = {
    "functions": "tools",
    "function_call": "tool_choice",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "guided_choice": "structured_outputs",
}

_MAX_REMEMBERED = 1000
_logged: set[str] = set()


def refuse_unsupported(request: ChatCompletionRequest) -> None:
    """Raise RequestError for the first field that asks for something this version does not do."""
    for field, neutral in _NEUTRAL.items():
        value = getattr(request, field)
        if value is not None and value not in neutral:
            allowed = " or ".join(repr(choice) for choice in neutral)
            advice = f"use '{_INSTEAD[field]}' instead" if field in _INSTEAD else "leave it out"
            raise RequestError(
                f"'{field}' is not supported{f' except as {allowed}' if allowed else ''}; {advice}.",
                param=field,
                code="unsupported_parameter",
            )


def log_unknown_names(names: Iterable[str]) -> None:
    """Log each name once. SDKs send new fields before servers know them, so they are no error."""
    for name in names:
        # The names come from clients: what is remembered is bounded.
        if name not in _logged and len(_logged) < _MAX_REMEMBERED:
            _logged.add(name)
            _log.warning("ignoring the unknown request field %r", name[:100])
