"""Messages and tools as chat templates want them: plain JSON values, in the field names that templates read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvllm_jax.errors import TokenizationError

__all__ = ["plain_messages", "plain_value"]

MAX_NESTING = 128
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""What a message's reasoning is called, by one template or another."""


def plain_messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """Messages as dictionaries of JSON values.

    Arguments of tool calls become objects (the OpenAI API has them as strings; a string that holds no object
    stays as it is), and reasoning is given under each of :data:`REASONING_NAMES`.

    Raises:
        TokenizationError: a message is no object, or holds what JSON cannot.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise TokenizationError(
            f"messages must be a list of messages, not a {type(messages).__name__}", param="messages"
        )
    plain = []
    for index, message in enumerate(messages):
        value = plain_value(message, f"messages[{index}]")
        if not isinstance(value, dict):
            raise TokenizationError(f"messages[{index}] must be an object, not {value!r:.80}", param="messages")
        plain.append(_with_reasoning(_with_argument_objects(value)))
    return plain


def plain_value(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of None, booleans, numbers, strings, lists and dictionaries alone.

    A template must not get at objects with methods of their own. Pydantic models give their set fields.
    """
    if value is None or type(value) in (str, bool, int, float):
        return value
    if depth > MAX_NESTING:
        raise TokenizationError(f"{where:.200} is nested more than {MAX_NESTING} deep", param=_param(where))
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TokenizationError(f"{where:.200} has the key {key!r:.80}, not a string", param=_param(where))
        return {
            str.__str__(key): plain_value(item, f"{where}.{key}", depth + 1) for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain_value(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if hasattr(value, "model_dump"):
        return plain_value(value.model_dump(mode="json", exclude_none=True), where, depth + 1)
    raise TokenizationError(
        f"{where:.200} is a {type(value).__name__}, which is no JSON value", param=_param(where)
    )


def _param(where: str) -> str:
    return where.partition("[")[0].partition(".")[0]


def _with_argument_objects(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [_with_argument_object(call) for call in calls]
    return message


def _with_argument_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return call | {"function": function | {"arguments": arguments}}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in REASONING_NAMES if message.get(name) is not None), None)
    if reasoning is None:
        return message
    present = {name: value for name, value in message.items() if value is not None or name not in REASONING_NAMES}
    return dict.fromkeys(REASONING_NAMES, reasoning) | present
