"""Conversations in short, to go on with when they have become too long."""

from __future__ import annotations

from collections.abc import Sequence

from cvllm_jax.openai.adapter import OpenAIAdapter
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import Message
from cvllm_jax.responses.creation import chat_request
from cvllm_jax.responses.errors import in_words_of_responses
from cvllm_jax.responses.items.ids import new_id
from cvllm_jax.responses.items.input_items import identified
from cvllm_jax.responses.items.opaque import encode_compaction
from cvllm_jax.responses.items.transcript import read_transcript
from cvllm_jax.responses.truncation import fitted
from cvllm_jax.responses.types import (
    CompactedResponse,
    Compaction,
    InputText,
    Item,
    MessageItem,
    ResponseRequest,
    ResponseUsage,
)

__all__ = ["compact"]

_TASK = (
    "Summarize the conversation so far for somebody who goes on with it and has not read it: what the user wants, "
    "what was found out and done, by which tools, what was decided, and what is left to do. Keep names, numbers, "
    "paths and identifiers as they are. Answer with the summary alone."
)


async def compact(
    adapter: OpenAIAdapter, request: ResponseRequest, items: Sequence[Item], created_at: int
) -> CompactedResponse:
    """A conversation's messages of the user as they are, and the model's summary of the rest, as one opaque item.

    A conversation that does not fit into the context is summarized without its oldest turns, which are still there
    as far as the user wrote them.

    Raises RequestError for a conversation that cannot be read, and what ``adapter.chat_completion`` raises.
    """
    messages = list(read_transcript(items, request.instructions).messages)
    chat = chat_request(request, [*messages, Message.user(_TASK)])
    chat = chat.model_copy(update={"max_completion_tokens": request.max_output_tokens})
    try:
        answer = await adapter.chat_completion(await fitted(adapter, chat))
    except RequestError as error:
        raise in_words_of_responses(error) from error
    text = answer.choices[0].message.content
    summary = text.strip() if isinstance(text, str) else ""
    content = encode_compaction(
        [MessageItem(role="developer", content=[InputText(text=f"Summary of the conversation so far:\n{summary}")])]
    )
    kept = [item for item in items if isinstance(item, MessageItem) and item.role == "user"]
    return CompactedResponse(
        id=new_id("resp"),
        created_at=created_at,
        output=[*identified(kept), Compaction(id=new_id("cmp"), encrypted_content=content)],
        usage=ResponseUsage.of(answer.usage),
    )
