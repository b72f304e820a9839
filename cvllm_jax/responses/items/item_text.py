"""What a model reads of items."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cvllm_jax.responses.items.opaque import decode_reasoning
from cvllm_jax.responses.types import ContentPart, Reasoning, Refusal

__all__ = ["error_text", "part_text", "reasoning_text"]

_OMITTED = {"input_image": "image", "input_file": "file", "input_audio": "audio", "input_video": "video"}


def part_text(part: ContentPart) -> str:
    """The text of a part of a message; what is no text is named."""
    if isinstance(part, Refusal):
        return part.refusal
    if part.type in _OMITTED:
        return f"[{_OMITTED[part.type]} omitted: this model reads text only]"
    return str(getattr(part, "text", ""))


def reasoning_text(item: Reasoning) -> str:
    """What the model thought: what is shown of it, what its client kept unread, or its summary."""
    if item.content:
        return "".join(part.text for part in item.content)
    if item.encrypted_content is not None:
        return decode_reasoning(item.encrypted_content)
    return "\n".join(part.text for part in item.summary)


def error_text(error: object) -> str:
    """What is told of a failed call: the tool's own text, or what is known of the error."""
    if isinstance(error, Mapping):
        content = error.get("content")
        if isinstance(content, list):
            texts = [
                part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            ]
            return "\n".join(texts)
        error = error.get("message", content)
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
