"""What clients ask to see of items beside what is always there: the ``include`` parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import get_args

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.responses.items.item_text import reasoning_text
from cvllm_jax.responses.items.opaque import encode_reasoning
from cvllm_jax.responses.types import Includable, Item, Reasoning

__all__ = ["check_include", "including"]

_KNOWN: tuple[str, ...] = get_args(Includable.__value__)


def check_include(names: Iterable[str]) -> None:
    """Raise RequestError for a name that the API does not have."""
    for index, name in enumerate(names):
        if name not in _KNOWN:
            known = ", ".join(f"'{one}'" for one in _KNOWN)
            raise RequestError(
                f"Invalid value: '{name[:100]}'. Supported values are: {known}.",
                param=f"include[{index}]",
                code="invalid_value",
            )


def including(items: Sequence[Item], names: Collection[str]) -> list[Item]:
    """Stored items with what is asked for and can still be added: reasoning in the form that clients give back.

    All else is there if it was asked for when the item was made. Raises as :func:`check_include` does.
    """
    check_include(names)
    if "reasoning.encrypted_content" not in names:
        return list(items)
    return [
        item.model_copy(update={"encrypted_content": encode_reasoning(reasoning_text(item))})
        if isinstance(item, Reasoning) and item.encrypted_content is None
        else item
        for item in items
    ]
