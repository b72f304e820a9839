"""The making of one response: from a request and what came before it to events, items and a stored record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cvllm_jax.errors import Error, McpConnectionError
from cvllm_jax.mcp import McpTool
from cvllm_jax.openai.adapter import OpenAIAdapter
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import ChatCompletionRequest, Message
from cvllm_jax.responses.agent.loop import run_agent
from cvllm_jax.responses.agent.types import AgentEnded, AgentEnding, AgentEvent, AgentTask
from cvllm_jax.responses.config import ResponsesConfig
from cvllm_jax.responses.errors import error_details, in_words_of_responses, response_error
from cvllm_jax.responses.items.tool_targets import ClientTarget, McpTarget, ToolTarget
from cvllm_jax.responses.items.transcript import Transcript, read_transcript
from cvllm_jax.responses.items.writer import Writer
from cvllm_jax.responses.run import Publish, Run
from cvllm_jax.responses.servers import RequestServers
from cvllm_jax.responses.toolset import Toolset, allowed_listing
from cvllm_jax.responses.truncation import fitted
from cvllm_jax.responses.types import EXTENSIONS, ErrorEvent, Item, Response, ResponseEvent, ResponseRequest

if TYPE_CHECKING:
    from cvllm_jax.responses.keeping import Keeper

__all__ = ["Context", "Creation", "LocalChains", "chat_request", "size_of"]

_log = logging.getLogger(__name__)

#: Fields that chat completions have by the same names.
_CHAT_FIELDS = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "parallel_tool_calls", *EXTENSIONS,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The conversation that a response goes on with."""

    items: Sequence[Item] = ()
    stored_as: str | None = None
    """The stored response that it ends with."""
    unstored: bool = False
    """Nobody has stored it: a response that is stored has to bring it along."""
    bytes: int = 0
    """What it takes, as JSON, of the memory that is kept for a client."""


type LocalChains = MutableMapping[str, Context]
"""Conversations that are kept for one client only, by the id of their last response."""


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
        context: the conversation so far.
        items: those that the request adds.
        local: conversations of one client; this one joins them when it has ended.
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
        context: Context,
        items: Sequence[Item],
        keeper: Keeper,
        servers: RequestServers,
        local: LocalChains | None = None,
        generate: bool = True,
    ) -> None:
        self._adapter = adapter
        self._config = config
        self._request = request
        self._context = context
        self._added = items
        self._items = [*context.items, *items]
        self._local = local
        self._keeper = keeper
        self._servers = servers
        self._generate = generate
        self._transcript = read_transcript(self._items, request.instructions)
        self._targets: dict[str, ToolTarget] = {}
        self._writer = Writer(request, response, targets=self._targets, approvals=self._transcript.approvals)
        self.failure: Exception | None = None
        self.run = Run(self._make, keep=bool(request.background))

    @property
    def response(self) -> Response:
        return self._writer.response

    async def _make(self, publish: Publish) -> None:
        try:
            await self._answer(publish)
        except asyncio.CancelledError:
            if not self._writer.ended:
                await self._end(publish, self._writer.cancel())
            raise
        except Exception as error:
            refused = in_words_of_responses(error) if isinstance(error, RequestError) else error
            if not self._keeper.begun:
                await self._keeper.drop()
                raise refused from error
            if not isinstance(error, Error):
                _log.error("a response failed", exc_info=error)
            self.failure = refused
            if not self._writer.ended:
                await self._end(publish, self._writer.fail(response_error(refused)))
        finally:
            await self._servers.aclose()

    async def _answer(self, publish: Publish) -> None:
        if self._request.background:
            await self._begin(publish, queued=True)
            started = self._writer.start()
            await self._keeper.update(self._writer.response)
            await self._tell(publish, started)
        elif self._generate and (self._request.mcp_tools or self._transcript.pending):
            await self._begin(publish)
        listed = await self._listed(publish)
        self._targets.update(_targets(self._request, listed.toolset))
        if not self._generate:
            await self._begin(publish)
            await self._take(AgentEnded(ending=AgentEnding.ANSWERED, messages=[]), publish)
            return
        async with aclosing(run_agent(self._adapter, await self._task(listed))) as events:
            async for event in events:
                if not self._keeper.begun:
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
        shown |= {(space, tool.name): name for name, (space, tool) in toolset.namespaced.items()}
        transcript = read_transcript(self._items, self._request.instructions, tool_names=shown)
        return _Listed(toolset=toolset, transcript=transcript)

    async def _task(self, listed: _Listed) -> AgentTask:
        request, toolset, config = self._request, listed.toolset, self._config
        chat = chat_request(request, listed.transcript.messages)
        chat = chat.model_copy(update={"tool_choice": toolset.chat_choice(request.tool_choice)})
        if request.truncation == "auto":
            seen = {"tools": toolset.definitions, "max_completion_tokens": request.max_output_tokens}
            chat = chat.model_copy(
                update={"messages": (await fitted(self._adapter, chat.model_copy(update=seen))).messages}
            )
        return AgentTask(
            chat=chat,
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
        brought = self._items if self._context.unstored else self._added
        await self._keeper.begin(self._writer.response, brought, self._context.stored_as)
        await self._tell(publish, events)

    async def _tell(self, publish: Publish, events: Sequence[ResponseEvent]) -> None:
        try:
            await self._keeper.save(events)
        finally:  # what failed is told by an event, and numbers have no gaps
            publish(events)

    async def _end(self, publish: Publish, events: Sequence[ResponseEvent]) -> None:
        """Store what came of it, and then tell: a client may go on from it at once."""
        if not self._keeper.begun:
            await self._keeper.drop()
            return
        try:
            await self._keeper.finish(self._writer.response, events)
        except Error as error:
            _log.error("a response could not be stored: %s", error)
            self.failure = error
            events = [ErrorEvent.of(error_details(error), event.sequence_number) for event in events[:1]]
        finally:
            self._remember()
            publish(events)

    def _remember(self) -> None:
        """A client's conversation goes on from its last response. A failed one takes what it went on from along."""
        if self._local is None:
            return
        response = self.response
        if self.failure is None and response.status in ("completed", "incomplete"):
            self._local.clear()
            stored = self._request.store is not False
            self._local[response.id] = Context(
                items=[*self._items, *response.output],
                stored_as=response.id if stored else None,
                unstored=not stored,
                bytes=self._context.bytes + size_of(self._added) + size_of(response.output),
            )
        elif self._request.previous_response_id is not None:
            self._local.pop(self._request.previous_response_id, None)


def size_of(items: Sequence[Item]) -> int:
    """Bytes of items as JSON."""
    return sum(len(item.model_dump_json()) for item in items)


def chat_request(request: ResponseRequest, messages: Sequence[Message]) -> ChatCompletionRequest:
    """A turn of the conversation as a chat completion, without tools."""
    fields: dict[str, Any] = {name: getattr(request, name) for name in _CHAT_FIELDS}
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
    for name, (space, own) in toolset.namespaced.items():
        targets[name] = ClientTarget(kind=own.type, name=own.name, namespace=space)
    for name, tool in toolset.mcp.items():
        targets[name] = McpTarget(server_label=tool.label, name=tool.tool.name, asks=name in toolset.asking)
    return targets
