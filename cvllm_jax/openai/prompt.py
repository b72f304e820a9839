"""A request's messages as the chat template wants them, and as prompt tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cvllm_jax.errors import TokenizationError
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import ChatCompletionRequest, ContentPart, Message

if TYPE_CHECKING:
    from cvllm_jax.text import ChatTemplate

__all__ = ["check_tool_turns", "render_prompt", "template_messages"]


def render_prompt(
    template: ChatTemplate | None, request: ChatCompletionRequest, tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """The conversation, and the tools that the model may see, as token ids, ready for the assistant's turn.

    Raises RequestError for messages that cannot be rendered and TokenizationError when the
    template itself refuses them.
    """
    if template is None:
        raise RequestError(
            "This model has no chat template, so it cannot answer messages; use a chat model, "
            "or generate from a plain prompt.",
            param="messages",
        )
    variables: dict[str, Any] = {"add_generation_prompt": True}
    if request.reasoning_effort is not None:
        variables["reasoning_effort"] = request.reasoning_effort
        if request.reasoning_effort == "none":  # what most templates of open models know instead
            variables["enable_thinking"] = False
    for name, value in (request.chat_template_kwargs or {}).items():
        if name in ("messages", "tools"):
            raise RequestError(
                f"'chat_template_kwargs' cannot set '{name}'; it is a field of the request.",
                param="chat_template_kwargs",
            )
        variables[name] = value
    messages = template_messages(request.messages)
    try:
        return template.encode(messages, tools, **variables)
    except TokenizationError as error:
        # Any other name is that of one of the template's variables.
        error.param = error.param if error.param in (None, "messages", "tools") else "chat_template_kwargs"
        error.param = error.param or "messages"
        raise


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as plain objects whose content is one string."""
    return [_template_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def check_tool_turns(messages: list[Message]) -> None:
    """Refuse calls that the messages right after them do not all answer, and tools' messages that answer none."""
    calls: set[str] = set()
    unanswered: dict[str, None] = {}  # a set that keeps the order
    for index, message in enumerate(messages):
        # Here, and in the sentences, what OpenAI's API says to the letter: clients look for it.
        param = f"messages.[{index}]"
        if message.role != "tool":
            if unanswered:
                raise _unanswered(unanswered, f"{param}.role")
            made = (message.tool_calls or ()) if message.role == "assistant" else ()
            unanswered = dict.fromkeys(call.id for call in made)
            calls = set(unanswered)
        elif not message.tool_call_id:
            raise _missing(f"messages[{index}].tool_call_id")
        elif not calls:
            raise RequestError(
                "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                "'tool_calls'.",
                param=f"{param}.role",
            )
        elif message.tool_call_id not in calls:
            raise RequestError(
                f"Invalid parameter: 'tool_call_id' of '{message.tool_call_id[:100]}' not found in 'tool_calls' of "
                "previous message.",
                param=f"{param}.tool_call_id",
            )
        else:
            unanswered.pop(message.tool_call_id, None)
    if unanswered:
        raise _unanswered(unanswered, "messages")


def _unanswered(calls: Iterable[str], param: str) -> RequestError:
    return RequestError(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {', '.join(calls)[:1000]}",
        param=param,
    )


def _template_message(message: Message, param: str) -> dict[str, Any]:
    if message.content is None and not (message.role == "assistant" and (message.tool_calls or message.refusal)):
        raise _missing(f"{param}.content")
    plain = message.model_dump(exclude_none=True)
    plain["content"] = _text(message, param)
    # Templates of open models know "system"; "developer" is OpenAI's newer name for the same turn.
    if message.role == "developer":
        plain["role"] = "system"
    return plain


def _text(message: Message, param: str) -> str:
    if message.content is None:
        return message.refusal or ""
    if isinstance(message.content, str):
        return message.content
    # Templates of text-only models print content as it is. A line break keeps parts apart.
    return "\n".join(
        _part_text(part, message.role, f"{param}.content[{index}]") for index, part in enumerate(message.content)
    )


def _part_text(part: ContentPart, role: str, param: str) -> str:
    if part.type == "text" and part.text is not None:
        return part.text
    if part.type == "refusal" and role == "assistant" and part.refusal is not None:
        return part.refusal
    if part.type in ("text", "refusal"):
        raise _missing(f"{param}.{part.type}")
    raise RequestError(
        f"Invalid value: '{part.type[:50]}'. This model reads text only: '{param}' must be of type 'text'.",
        param=f"{param}.type",
        code="invalid_value",
    )


def _missing(param: str) -> RequestError:
    return RequestError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
