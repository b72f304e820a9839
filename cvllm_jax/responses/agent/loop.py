"""The agent: asks the model, runs the tools that it calls, and asks again until there is an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from cvllm_jax.errors import McpToolExecutionError
from cvllm_jax.openai.adapter import OpenAIAdapter
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.streaming import ChatCompletionStream
from cvllm_jax.openai.types import (
    AllowedTools,
    ChatCompletionRequest,
    CompletionTokensDetails,
    Message,
    PromptTokensDetails,
    StreamOptions,
    ToolCall,
    ToolChoice,
    ToolReference,
    Usage,
)
from cvllm_jax.responses.agent.calls import CallRunner
from cvllm_jax.responses.agent.turn import TurnReader
from cvllm_jax.responses.agent.types import AgentEnded, AgentEnding, AgentEvent, AgentTask, TurnEnded, TurnStarted

__all__ = ["run_agent"]


async def run_agent(adapter: OpenAIAdapter, task: AgentTask) -> AsyncGenerator[AgentEvent, None]:
    """Go on with a conversation until it is answered or needs whoever asked. The last event is an AgentEnded.

    Pieces of answers come as the model makes them. The tools of one turn run at the same time, and what they
    answered goes back to the model in the order of the calls, errors too. What a call may run into:

    - It is cut by the length limit: it does not run, and the agent ends.
    - It names no tool, its arguments are no JSON object, it is denied, or ``max_tool_calls`` is reached: the model is
      told so. Once the limit is reached, the tools that the agent runs cannot be called any more.
    - Whoever asked runs it, or has to approve it: the agent ends when the other calls of the turn have run. Where both
      kinds are open, it ends with APPROVAL.

    Close the generator, or cancel the task that iterates it, to end the model's request and the tools that run; it
    waits until they have cleaned up.

    Raises what :meth:`OpenAIAdapter.chat_completion_stream` raises, and RequestError for a task that cannot be done.
    """
    if (task.chat.n or 1) > 1:
        raise RequestError("An agent goes on with one answer a turn: 'n' must be 1.", param="n", code="invalid_value")
    runner = CallRunner(task)
    added: list[Message] = []
    usage: Usage | None = None
    calls, approval = task.pending, None
    turn = 0
    while True:
        if calls:
            calls_round = runner.round(calls, approval)
            async with aclosing(calls_round.events()) as events:
                async for event in events:
                    yield event
            added += calls_round.messages
            if calls_round.open_calls:
                ending = AgentEnding.APPROVAL if calls_round.asks else AgentEnding.CALLS
                yield AgentEnded(ending=ending, messages=added, open_calls=calls_round.open_calls, usage=usage)
                return
        if turn == task.max_turns:
            yield AgentEnded(ending=AgentEnding.MAX_TURNS, messages=added, usage=usage)
            return
        turn += 1
        room = None
        if task.max_output_tokens is not None:
            room = task.max_output_tokens - (usage.completion_tokens if usage is not None else 0)
            if room <= 0:
                yield AgentEnded(ending=AgentEnding.CUT, messages=added, usage=usage)
                return
        request = _request(task, added, first=turn == 1, exhausted=runner.exhausted, room=room)
        reader = TurnReader()
        async with await _asked(adapter, request, room) as chunks:
            yield TurnStarted(turn)
            async for chunk in chunks:
                for piece in reader.feed(chunk):
                    yield piece
        message, cut = reader.message, reader.finish_reason == "length"
        usage = reader.usage if usage is None else _sum(usage, reader.usage)
        yield TurnEnded(turn=turn, message=message, finish_reason=reader.finish_reason, usage=reader.usage)
        calls, approval = message.tool_calls or (), task.approval
        added.append(_remembered(message, () if cut else calls))
        if cut or not calls:
            ending = AgentEnding.CUT if cut else AgentEnding.ANSWERED
            yield AgentEnded(ending=ending, messages=added, usage=usage)
            return


async def _asked(adapter: OpenAIAdapter, request: ChatCompletionRequest, room: int | None) -> ChatCompletionStream:
    """The answer on its way. ``room`` is a limit and no demand: where less fits, the context ends the answer."""
    try:
        return await adapter.chat_completion_stream(request)
    except RequestError as error:
        limit = request.max_completion_tokens
        if limit is None or limit != room or error.param != "max_completion_tokens":
            raise
    return await adapter.chat_completion_stream(request.model_copy(update={"max_completion_tokens": None}))


def _request(
    task: AgentTask, added: Sequence[Message], *, first: bool, exhausted: bool, room: int | None
) -> ChatCompletionRequest:
    """What the model is asked in one turn, whose answer may have ``room`` tokens."""
    tools = [tool for tool in task.tools if not (exhausted and tool.run is not None)]
    if tools or not task.tools:
        as_asked = first and task.callable is None
        choice = task.chat.tool_choice if as_asked else _tool_choice(task, [tool.name for tool in tools], first=first)
    else:  # shown all the same: the prompt stays as it was, and so does what is cached of it
        tools, choice = list(task.tools), ToolChoice.mode("none")
    most = task.chat.max_completion_tokens
    return task.chat.model_copy(
        update={
            "max_completion_tokens": most if room is None else room if most is None else min(most, room),
            "messages": [*task.chat.messages, *added],
            "tools": [tool.definition for tool in tools] or None,
            "tool_choice": choice,
            "stream": True,
            "stream_options": StreamOptions(include_usage=True),
        }
    )


def _tool_choice(task: AgentTask, names: Sequence[str], *, first: bool) -> ToolChoice:
    """The task's choice among the tools ``names``; after the first turn it forces nothing."""
    choice = task.chat.tool_choice.root if task.chat.tool_choice is not None else "auto"
    mode, limited = choice if isinstance(choice, str) else "auto", isinstance(choice, AllowedTools)
    if task.callable is not None:
        limited |= not set(names) <= set(task.callable)
        names = [name for name in names if name in task.callable]
    if isinstance(choice, AllowedTools):
        mode = choice.allowed_tools.mode
        chosen = {tool.function.name for tool in choice.allowed_tools.tools}
        names = [name for name in names if name in chosen]
    elif isinstance(choice, ToolReference) and first:
        if choice.function.name in names:
            return ToolChoice.function(choice.function.name)
        raise RequestError(
            f"Tool choice '{choice.function.name[:100]}' is none of the tools that may be called.", param="tool_choice"
        )
    forced: Literal["required", "auto"] = "required" if first and mode == "required" else "auto"
    if mode == "none" or not names:
        if forced == "required":
            raise RequestError("'tool_choice' demands a call, but no tool may be called.", param="tool_choice")
        return ToolChoice.mode("none")
    return ToolChoice.allowed_tools(names, forced) if limited else ToolChoice.mode(forced)


def _remembered(message: Message, calls: Sequence[ToolCall]) -> Message:
    """An answer as later turns are shown it, with ``calls`` that have or will have results.

    Many chat templates can print objects only, so a call whose arguments are none is shown with none at all; the
    error that answers it tells what was wrong.
    """
    shown = [call if _has_object(call) else _without_arguments(call) for call in calls]
    content = message.content if message.content or shown else ""
    return message.model_copy(update={"content": content, "tool_calls": shown or None})


def _has_object(call: ToolCall) -> bool:
    try:
        call.to_mcp_call()
    except McpToolExecutionError:
        return False
    return True


def _without_arguments(call: ToolCall) -> ToolCall:
    return call.model_copy(update={"function": call.function.model_copy(update={"arguments": "{}"})})


def _sum(one: Usage, other: Usage) -> Usage:
    """The tokens of both."""
    prompt, completion = (one.prompt_tokens_details, one.completion_tokens_details)
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        total_tokens=one.total_tokens + other.total_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=prompt.cached_tokens + other.prompt_tokens_details.cached_tokens
        ),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=completion.reasoning_tokens + other.completion_tokens_details.reasoning_tokens
        ),
    )
