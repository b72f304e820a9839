"""The making of one response: from a request and what came before it to events, items and a stored record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cvllm_jax.errors import Error, McpConnectionError
from cvllm_jax.mcp import McpTool
from cvllm_jax.openai.adapter import OpenAIAdapter
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import ChatCompletionRequest, Message
from cvllm_jax.responses.agent import run_agent
from cvllm_jax.responses.agent_types import AgentEnded, AgentEnding, AgentEvent, AgentTask
from cvllm_jax.responses.config import ResponsesConfig
from cvllm_jax.responses.errors import error_details, in_words_of_responses, response_error
from cvllm_jax.responses.run import Publish, Run
from cvllm_jax.responses.servers import RequestServers
from cvllm_jax.responses.tool_targets import McpTarget, ToolTarget
from cvllm_jax.responses.toolset import Toolset, allowed_listing
from cvllm_jax.responses.transcript import Transcript, read_transcript, shortened
from cvllm_jax.responses.types import ErrorEvent, Item, Response, ResponseEvent, ResponseRequest
from cvllm_jax.responses.writer import Writer

if TYPE_CHECKING:
    from cvllm_jax.responses.keeping import Keeper

__all__ = ["Creation", "chat_request"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """What the model can be asked with."""

    toolset: Toolset
    transcript: Transcript


class Creation:
    """One response on its way. ``run`` has its events; :attr:`response` is the response so far.

    What is wrong with the request is raised by ``run.begun()`` where it can be known before the first event. Later
    failures are told by events, and kept in ``failure``.

    Arguments:
        context: items of the conversation so far.
        items: those that the request adds.
        keeper: stores the response, or does not.
        servers: the MCP servers that the request names; closed at the end.
        generate: False leaves the output empty.
    """

    def __init__(
        self,
        adapter: OpenAIAdapter,
        config: ResponsesConfig,
        request: ResponseRequest,
        response: Response,
        *,
        context: Sequence[Item],
        items: Sequence[Item],
        keeper: Keeper,
        servers: RequestServers,
        generate: bool = True,
    ) -> None:
        self._adapter = adapter
        self._config = config
        self._request = request
        self._items = [*context, *items]
        self._keeper = keeper
        self._servers = servers
        self._generate = generate
        self._transcript = read_transcript(self._items, request.instructions)
        self._targets: dict[str, ToolTarget] = {}
        self._writer = Writer(request, response, targets=self._targets, approvals=self._transcript.approvals)
        self._begun = False
        self.failure: Exception | None = None
        self.run = Run(self._make, keep=bool(request.background))

    @property
    def response(self) -> Response:
        return self._writer.response

    @property
    def items(self) -> list[Item]:
        """The conversation with what the response has added so far."""
        return [*self._items, *self._writer.response.output]

    async def _make(self, publish: Publish) -> None:
        try:
            await self._answer(publish)
        except asyncio.CancelledError:
            await self._end(publish, self._writer.cancel())
            raise
        except Exception as error:
            refused = in_words_of_responses(error) if isinstance(error, RequestError) else error
            if not self._begun:
                await self._keeper.drop()
                raise refused from error
            if not isinstance(error, Error):
                _log.error("a response failed", exc_info=error)
            self.failure = refused
            await self._end(publish, self._writer.fail(response_error(refused)))
        finally:
            await self._servers.aclose()

    async def _answer(self, publish: Publish) -> None:
        if self._request.background:
            await self._begin(publish, queued=True)
            await self._tell(publish, self._writer.start())
        elif self._generate and (self._request.mcp_tools or self._transcript.pending):
            await self._begin(publish)
        listed = await self._listed(publish)
        self._targets.update(_targets(self._request, listed.toolset))
        task = self._task(listed)
        if not self._generate:
            await self._begin(publish)
            await self._take(AgentEnded(ending=AgentEnding.ANSWERED, messages=[]), publish)
            return
        while True:
            try:
                await self._work(task, publish)
                return
            except RequestError as error:
                shorter = None
                if error.code == "context_length_exceeded" and self._request.truncation == "auto":
                    shorter = shortened(task.chat.messages)
                if shorter is None or self._writer.response.output:
                    raise
                task = replace(task, chat=task.chat.model_copy(update={"messages": shorter}))

    async def _work(self, task: AgentTask, publish: Publish) -> None:
        async with aclosing(run_agent(self._adapter, task)) as events:
            async for event in events:
                if not self._begun:
                    await self._begin(publish)
                await self._take(event, publish)

    async def _take(self, event: AgentEvent, publish: Publish) -> None:
        events = self._writer.take(event)
        await (self._end if isinstance(event, AgentEnded) else self._tell)(publish, events)

    async def _listed(self, publish: Publish) -> _Listed:
        """The request's tools, for which MCP servers are asked what they have, unless the conversation tells it."""
        known = self._transcript.tool_lists
        hosted = self._request.mcp_tools
        asked = [tool.server_label for tool in hosted if tool.server_label not in known]
        listings: dict[str, Sequence[McpTool]] = {}
        pending = {label: asyncio.ensure_future(self._servers.tools(label)) for label in asked}
        try:
            for label in asked:
                await self._tell(publish, self._writer.start_listing(label))
            for tool in hosted:
                label = tool.server_label
                if label in known:
                    listings[label] = allowed_listing(tool, known[label])
                    continue
                try:
                    listings[label] = allowed_listing(tool, await pending[label])
                except Error as error:
                    message = f"Error retrieving tool list from MCP server: '{label}'. {error}"
                    await self._tell(publish, self._writer.list_tools(label, error=message))
                    raise McpConnectionError(message, param="tools") from error
                await self._tell(publish, self._writer.list_tools(label, listings[label]))
        finally:
            for listing in pending.values():
                listing.cancel()
            await asyncio.gather(*pending.values(), return_exceptions=True)
        toolset = Toolset.of(
            self._request, self._servers, listings, asks_by_default=self._config.mcp_approval == "always"
        )
        shown = {(tool.label, tool.tool.name): name for name, tool in toolset.mcp.items()}
        transcript = read_transcript(self._items, self._request.instructions, tool_names=shown)
        return _Listed(toolset=toolset, transcript=transcript)

    def _task(self, listed: _Listed) -> AgentTask:
        request, toolset, config = self._request, listed.toolset, self._config
        chat = chat_request(request, listed.transcript.messages)
        return AgentTask(
            chat=chat.model_copy(update={"tool_choice": toolset.chat_choice(request.tool_choice)}),
            tools=toolset.tools,
            pending=listed.transcript.pending,
            max_turns=config.max_turns,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            approval=toolset.approval,
            tool_timeout_secs=config.tool_timeout_secs,
            max_tool_output_chars=config.max_tool_output_chars,
        )

    async def _begin(self, publish: Publish, *, queued: bool = False) -> None:
        events = self._writer.begin(queued=queued)
        await self._keeper.begin(self._writer.response)
        self._begun = True
        await self._tell(publish, events)

    async def _tell(self, publish: Publish, events: Sequence[ResponseEvent]) -> None:
        await self._keeper.save(events)
        publish(events)

    async def _end(self, publish: Publish, events: Sequence[ResponseEvent]) -> None:
        """Store what came of it, and then tell: a client may go on from it at once."""
        if not self._begun:
            await self._keeper.drop()
            return
        try:
            await self._keeper.save(events, last=True)
            await self._keeper.finish(self._writer.response)
        except Error as error:
            _log.error("a response could not be stored: %s", error)
            self.failure = error
            events = [ErrorEvent.of(error_details(error), events[0].sequence_number)] if events else []
        publish(events)


def chat_request(request: ResponseRequest, messages: Sequence[Message]) -> ChatCompletionRequest:
    """A turn of the conversation as a chat completion, without tools."""
    fields: dict[str, Any] = {
        name: getattr(request, name)
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "parallel_tool_calls")
    }
    if request.includes("message.output_text.logprobs"):
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.text is not None:
        fields["response_format"] = request.text.chat_format()
    if request.reasoning is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    return ChatCompletionRequest(model=request.model, messages=list(messages), **fields)


def _targets(request: ResponseRequest, toolset: Toolset) -> Mapping[str, ToolTarget]:
    targets: dict[str, ToolTarget] = {tool.name: "function" for tool in request.function_tools}
    targets |= {tool.name: "custom" for tool in request.custom_tools}
    for name, tool in toolset.mcp.items():
        targets[name] = McpTarget(server_label=tool.label, name=tool.tool.name, asks=name in toolset.asking)
    return targets
