"""OpenAI's Responses API without HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Collection
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from cvllm_jax.mcp import McpServers, UrlPolicy
from cvllm_jax.openai.adapter import OpenAIAdapter
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.responses.agent.mcp_tools import list_mcp_tools
from cvllm_jax.responses.compaction import compact
from cvllm_jax.responses.config import ResponsesConfig
from cvllm_jax.responses.conversations import item_list
from cvllm_jax.responses.creation import Context, Creation, LocalChains, chat_request, size_of
from cvllm_jax.responses.errors import NotFoundError, api_errors, in_words_of_responses
from cvllm_jax.responses.items.ids import new_id
from cvllm_jax.responses.items.inclusion import check_include, including
from cvllm_jax.responses.items.input_items import identified
from cvllm_jax.responses.items.transcript import read_transcript
from cvllm_jax.responses.keeping import Keeper
from cvllm_jax.responses.servers import RequestServers
from cvllm_jax.responses.store import Order, StoredResponse
from cvllm_jax.responses.toolset import Toolset, allowed_listing
from cvllm_jax.responses.types import (
    CompactedResponse,
    Deleted,
    InputTokens,
    Item,
    ItemList,
    ItemReference,
    Response,
    ResponseEvent,
    ResponseRequest,
)

if TYPE_CHECKING:
    from cvllm_jax.responses.store import ResponseStore

__all__ = ["ResponseStream", "ResponsesService"]

_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
_EVENT: TypeAdapter[ResponseEvent] = TypeAdapter(ResponseEvent)
_POLL_SECS = 0.2
_MAX_LOCAL_BYTES = 64 << 20


class ResponseStream:
    """The events of one response. Closing it early ends the response, unless that runs in the background."""

    def __init__(self, events: AsyncGenerator[ResponseEvent, None], creation: Creation | None = None) -> None:
        self._events = events
        self._creation = creation

    def __aiter__(self) -> AsyncGenerator[ResponseEvent, None]:
        return self._events

    async def aclose(self) -> None:
        """End the response, unless it runs in the background."""
        await self._events.aclose()
        if self._creation is not None:
            await self._creation.run.cancel()


class ResponsesService:
    """Makes responses, and keeps them in a store, for any number of clients at once.

    Errors: RequestError for requests that cannot be served as written, NotFoundError among them, McpConnectionError
    where an MCP server cannot be asked for its tools, StoreUnavailableError where the store fails, and what
    :class:`~cvllm_jax.openai.OpenAIAdapter` raises. The store stays its opener's, who closes it after the service.
    """

    def __init__(self, adapter: OpenAIAdapter, store: ResponseStore, config: ResponsesConfig | None = None) -> None:
        self._adapter = adapter
        self._store = store
        self._config = config or ResponsesConfig()
        self._policy = UrlPolicy(self._config.mcp_allow)
        self._servers = McpServers(self._config.mcp_servers)
        self._background: dict[str, Creation] = {}

    async def aclose(self) -> None:
        """End the responses that run in the background, and the connections to MCP servers."""
        for creation in list(self._background.values()):
            await creation.run.cancel()
        await self._servers.aclose()

    async def create(self, request: ResponseRequest, local: LocalChains | None = None) -> Response:
        """Answer a request. Cancelling the awaiting task ends the response, unless it runs in the background.

        Arguments:
            local: conversations that are not stored; this one joins them.
        """
        creation = await self._start(request, local)
        if request.background:
            return creation.response
        try:
            await creation.run.wait()
        finally:
            await creation.run.cancel()
        if creation.failure is not None:
            raise creation.failure
        return creation.response

    async def stream(
        self, request: ResponseRequest, local: LocalChains | None = None, *, generate: bool = True
    ) -> ResponseStream:
        """Answer a request event by event; what is wrong with the request is raised here.

        Arguments:
            generate: False makes a response without an output, for others to go on from.
        """
        creation = await self._start(request, local, generate=generate)
        return ResponseStream(creation.run.events(), None if request.background else creation)

    async def retrieve(self, response_id: str, include: Collection[str] = ()) -> Response:
        """A stored response, as it stands."""
        check_include(include)
        if (creation := self._background.get(response_id)) is not None:
            response = creation.response
        else:
            response = _response(await _asked(self._store.retrieve(response_id)))
        return response.model_copy(update={"output": including(response.output, include)})

    async def resume(self, response_id: str, starting_after: int = -1) -> ResponseStream:
        """The events of a response that runs or ran in the background, after the one with this sequence number."""
        if (creation := self._background.get(response_id)) is not None:
            return ResponseStream(creation.run.events(starting_after))
        stored = await _asked(self._store.retrieve(response_id))
        if not stored.response.get("background"):
            raise RequestError(
                "This response cannot be streamed: only responses that were created with 'background' keep their "
                "events.",
                param="stream",
                code="invalid_value",
            )
        return ResponseStream(self._stored_events(response_id, starting_after))

    async def cancel(self, response_id: str) -> Response:
        """End a response that runs in the background. One that was cancelled before stays as it is."""
        stored = await _asked(self._store.retrieve(response_id))
        if not stored.response.get("background"):
            raise RequestError("Cannot cancel a synchronous response.", param="response_id", code="invalid_value")
        creation = self._background.get(response_id)
        if creation is not None:
            await creation.run.cancel()
            return await self.retrieve(response_id)
        response = _response(stored)
        if stored.active:
            raise RequestError("This response is made by another server; cancel it there.", code="invalid_value")
        if response.status != "cancelled":
            raise RequestError(
                f"Cannot cancel a response that is {response.status}.", param="response_id", code="invalid_value"
            )
        return response

    async def delete(self, response_id: str) -> Deleted:
        """Delete a stored response; one that runs in the background ends."""
        if (creation := self._background.get(response_id)) is not None:
            await creation.run.cancel()
        await _asked(self._store.delete(response_id))
        return Deleted(id=response_id)

    async def input_items(
        self,
        response_id: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: Order = "desc",
        include: Collection[str] = (),
    ) -> ItemList:
        """A page of what a response's request added to its conversation."""
        check_include(include)
        page = await _asked(self._store.input_items(response_id, after=after, before=before, limit=limit, order=order))
        return item_list(page, include)

    async def input_tokens(self, request: ResponseRequest) -> InputTokens:
        """How many tokens the model would read before its first answer."""
        context = await self._context(request, None)
        items = [*context.items, *await self._new_items(request, context)]
        transcript = read_transcript(items, request.instructions)
        servers = await self._request_servers(request)
        try:
            labels = [tool.server_label for tool in request.mcp_tools]
            known = dict(transcript.tool_lists)
            known |= await list_mcp_tools(servers, [label for label in labels if label not in known])
            listings = {
                tool.server_label: allowed_listing(tool, known[tool.server_label]) for tool in request.mcp_tools
            }
            toolset = Toolset.of(request, servers, listings, asks_by_default=True)
        finally:
            await servers.aclose()
        chat = chat_request(request, transcript.messages)
        tools = [tool.definition for tool in toolset.tools] or None
        choice = toolset.chat_choice(request.tool_choice)
        try:
            count = await self._adapter.prompt_tokens(chat.model_copy(update={"tools": tools, "tool_choice": choice}))
        except RequestError as error:
            raise in_words_of_responses(error) from error
        return InputTokens(input_tokens=count)

    async def compact(self, request: ResponseRequest, local: LocalChains | None = None) -> CompactedResponse:
        """The conversation in short: items to begin another one with."""
        context = await self._context(request, local)
        items = [*context.items, *await self._new_items(request, context)]
        return await compact(self._adapter, request, items, int(time.time()))

    async def _start(self, request: ResponseRequest, local: LocalChains | None, *, generate: bool = True) -> Creation:
        """Begin to make a response; returns when it has its first event."""
        if request.background and request.store is False:
            raise RequestError(
                "Background responses are stored: 'background' needs 'store' to be true.",
                param="background",
                code="invalid_parameter_combination",
            )
        response_id = new_id("resp")
        keeper = Keeper(self._store, response_id, request)
        try:
            await _asked(keeper.lock())
            context = await self._context(request, local)
            items = await self._new_items(request, context)
            if local is not None and context.bytes + size_of(items) > _MAX_LOCAL_BYTES:
                raise RequestError(
                    f"The conversation of this connection holds more than {_MAX_LOCAL_BYTES >> 20} MiB, the most that "
                    "is kept.",
                    param="input",
                    code="conversation_too_large",
                )
            creation = Creation(
                self._adapter,
                self._config,
                request,
                Response.begun(request, id=response_id, created_at=int(time.time())),
                context=context,
                items=items,
                keeper=keeper,
                servers=await self._request_servers(request),
                local=local,
                generate=generate,
            )
        except BaseException:
            await keeper.drop()
            raise
        if request.background:
            self._background[response_id] = creation
            creation.run.on_end(lambda: self._background.pop(response_id, None))
        try:
            await _asked(creation.run.begun())
        except BaseException:
            await creation.run.cancel()
            raise
        return creation

    async def _context(self, request: ResponseRequest, local: LocalChains | None) -> Context:
        """The conversation that the request goes on with."""
        previous = request.previous_response_id
        if previous is not None:
            if local is not None and previous in local:
                return local[previous]
            items = await _asked(self._store.chain(previous))
            return Context(items=_ITEMS.validate_python(items), stored_as=previous)
        if request.conversation_id is not None:
            found = await _asked(self._store.conversations.all_items(request.conversation_id))
            return Context(items=_ITEMS.validate_python(found))
        return Context()

    async def _new_items(self, request: ResponseRequest, context: Context) -> list[Item]:
        """The request's own items, each with an id; references become what they stand for.

        What is in the conversation already is not added again.
        """
        known = {item.id for item in context.items}
        given = {item.id for item in request.items if not isinstance(item, ItemReference)}
        wanted = {item.id for item in request.items if isinstance(item, ItemReference)} - known - given
        stored = await _asked(self._store.find_items(wanted)) if wanted else {}
        items: list[Item] = []
        for item in request.items:
            if not isinstance(item, ItemReference):
                items.append(item)
            elif item.id in stored:
                items += _ITEMS.validate_python([stored.pop(item.id)])
            elif item.id in wanted - known:
                raise NotFoundError(f"Item with id '{item.id[:100]}' not found.", param="input")
        return identified(items)

    async def _request_servers(self, request: ResponseRequest) -> RequestServers:
        return await RequestServers.of(request, self._servers, self._policy, self._config.mcp_timeout_secs)

    async def _stored_events(self, response_id: str, after: int) -> AsyncGenerator[ResponseEvent, None]:
        """Those that are stored, and those to come if another process makes the response."""
        while True:
            active = (await _asked(self._store.retrieve(response_id))).active
            events = await _asked(self._store.events_after(response_id, after))
            for event in events:
                yield _EVENT.validate_python(event)
                after = event["sequence_number"]
            if not events and not active:
                return
            if not events:
                await asyncio.sleep(_POLL_SECS)


def _response(stored: StoredResponse) -> Response:
    if not stored.interrupted:
        return Response.model_validate(stored.response)
    error = {"code": "server_error", "message": "The server stopped before this response was complete."}
    return Response.model_validate({**stored.response, "incomplete_details": None, "error": error})


async def _asked[T](work: Awaitable[T]) -> T:
    with api_errors():
        return await work
