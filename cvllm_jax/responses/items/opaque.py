"""What clients keep for this server and give back unread: reasoning, and conversations in short.

OpenAI's API calls it encrypted content. Here it is JSON in base64: nothing in it is secret from its client, and nothing
that comes back is trusted more than any other input.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types.fields import STRICT
from cvllm_jax.responses.types import Compaction, Item, ItemReference

__all__ = ["decode_compaction", "decode_reasoning", "encode_compaction", "encode_reasoning"]


class _Reasoning(BaseModel):
    model_config = STRICT

    version: Literal[1] = 1
    kind: Literal["reasoning"] = "reasoning"
    text: str


class _Compaction(BaseModel):
    model_config = STRICT

    version: Literal[1] = 1
    kind: Literal["compaction"] = "compaction"
    items: list[Item]


_CONTENT: TypeAdapter[_Reasoning | _Compaction] = TypeAdapter(
    Annotated[_Reasoning | _Compaction, Field(discriminator="kind")]
)


def encode_reasoning(text: str) -> str:
    """A reasoning item's ``encrypted_content``."""
    return _encode(_Reasoning(text=text))


def decode_reasoning(content: str) -> str:
    """The text; raises RequestError for what :func:`encode_reasoning` did not make."""
    decoded = _decode(content)
    if not isinstance(decoded, _Reasoning):
        raise _refused()
    return decoded.text


def encode_compaction(items: Sequence[Item]) -> str:
    """A compaction item's ``encrypted_content``: the items that it stands for."""
    return _encode(_Compaction(items=list(items)))


def decode_compaction(content: str) -> list[Item]:
    """The items; raises RequestError for what :func:`encode_compaction` did not make."""
    decoded = _decode(content)
    if not isinstance(decoded, _Compaction):
        raise _refused()
    # Nothing is compacted twice, and what a reference would bring in is not known here.
    if any(isinstance(item, Compaction | ItemReference) for item in decoded.items):
        raise _refused()
    return decoded.items


def _encode(content: BaseModel) -> str:
    return base64.urlsafe_b64encode(content.model_dump_json().encode()).decode()


def _decode(content: str) -> _Reasoning | _Compaction:
    try:
        data: Any = json.loads(base64.b64decode(content.encode(), altchars=b"-_", validate=True))
        return _CONTENT.validate_python(data)
    except (binascii.Error, ValueError, RecursionError):
        raise _refused() from None


def _refused() -> RequestError:
    return RequestError(
        "The encrypted content could not be verified. Reason: it was not made by this server.",
        param="input",
        code="invalid_encrypted_content",
    )
