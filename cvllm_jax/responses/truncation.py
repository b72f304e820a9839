"""Conversations that are too long for the model, without their oldest turns."""

from __future__ import annotations

from cvllm_jax.openai.adapter import OpenAIAdapter
from cvllm_jax.openai.types import ChatCompletionRequest, Message

__all__ = ["fitted"]


async def fitted(adapter: OpenAIAdapter, chat: ChatCompletionRequest) -> ChatCompletionRequest:
    """``chat`` without as many of its oldest turns as it takes for an answer to fit into the context.

    A turn begins with a user's message. What comes before the first one stays, and so does the last turn: where these
    alone are too long, they are returned, and refused by whoever asks the model. What is left out makes room for
    ``max_completion_tokens``, or for an answer of a quarter of the context.
    """
    limit = adapter.engine.model_info().max_sequence_length
    messages, wanted = chat.messages, chat.max_completion_tokens

    async def fits(messages: list[Message], room: int) -> bool:
        return await adapter.prompt_tokens(chat.model_copy(update={"messages": messages})) + room <= limit

    if await fits(messages, wanted or 1):
        return chat
    head = next((at for at, message in enumerate(messages) if message.role not in ("system", "developer")), 0)
    begins = [at for at in range(head + 1, len(messages)) if messages[at].role == "user"]
    # the fewest turns to leave out, by bisection: whatever is shorter fits, too
    few, many = 0, len(begins) - 1
    while few < many:
        middle = (few + many) // 2
        if await fits(messages[:head] + messages[begins[middle] :], wanted or limit // 4):
            many = middle
        else:
            few = middle + 1
    return chat.model_copy(update={"messages": messages[:head] + messages[begins[few] :]}) if begins else chat
