"""Where one response is kept while it is made, and afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cvllm_jax.responses.store import (
    ConversationLockedError,
    ConversationNotFoundError,
    ResponseNotFoundError,
    StoreError,
)
from cvllm_jax.responses.store.whole import whole
from cvllm_jax.responses.types import Item, Response, ResponseError, ResponseEvent, ResponseRequest

if TYPE_CHECKING:
    from cvllm_jax.responses.store import ResponseStore

__all__ = ["Keeper"]

_SAVE_EVENTS = 64
_SAVE_SECS = 0.5


class Keeper:
    """Stores one response, its items, and its events if it runs in the background; or only its conversation's items.

    Its conversation is locked from :meth:`lock` to the response's end.
    """

    def __init__(self, store: ResponseStore, response_id: str, request: ResponseRequest) -> None:
        self._store = store
        self._id = response_id
        self._stored = request.store is not False
        self._with_events = bool(request.background)
        self._conversation_id = request.conversation_id
        self._items: list[dict[str, Any]] = []
        self._begun = False
        self._unsaved: list[ResponseEvent] = []
        self._saved_at = 0.0

    async def lock(self) -> None:
        """Let nothing else use the conversation. End it with :meth:`drop`, even where this raises, or begin."""
        if self._conversation_id is not None:
            await self._store.conversations.lock(self._conversation_id, self._id)

    @property
    def begun(self) -> bool:
        return self._begun

    @whole
    async def begin(self, response: Response, items: Sequence[Item], previous_response_id: str | None) -> None:
        """The response has begun. From now on, a process that ends leaves an incomplete one.

        Arguments:
            items: those that it adds to what it goes on from.
            previous_response_id: the stored response that it goes on from.
        """
        self._items = [item.model_dump(mode="json") for item in items]
        if self._stored:
            await self._store.create(
                self._id,
                response.model_dump(mode="json"),
                input_items=self._items,
                previous_response_id=previous_response_id,
                conversation_id=self._conversation_id,
            )
        self._begun = True

    async def update(self, response: Response) -> None:
        """The response is not what it was, and has not ended."""
        if self._stored:
            await self._store.update(self._id, response.model_dump(mode="json"))

    async def save(self, events: Sequence[ResponseEvent], *, last: bool = False) -> None:
        """Keep events, some at a time: a process that ends between loses a few."""
        if not (self._stored and self._with_events):
            return
        self._unsaved += events
        now = time.monotonic()
        if self._unsaved and (last or len(self._unsaved) >= _SAVE_EVENTS or now - self._saved_at > _SAVE_SECS):
            unsaved, self._unsaved, self._saved_at = self._unsaved, [], now
            await self._store.append_events(self._id, [event.model_dump(mode="json") for event in unsaved])

    @whole
    async def finish(self, response: Response, events: Sequence[ResponseEvent]) -> None:
        """The response has ended, however that was, and these are its last events.

        Raises the store's error where it cannot be stored like that; it is stored as failed then.
        """
        try:
            await self.save(events, last=True)
            await self._close(response)
        except ResponseNotFoundError:  # it was deleted meanwhile
            await self._unlock([])
        except StoreError as error:  # yet nothing may stay in progress, or locked
            try:
                await self._close(_failed(response, error))
            except StoreError:
                await self._unlock([])
            raise

    async def _close(self, response: Response) -> None:
        output = [item.model_dump(mode="json") for item in response.output]
        if self._stored:
            await self._store.finish(self._id, response.model_dump(mode="json"), output)
        else:
            await self._unlock([*self._items, *output] if response.status in ("completed", "incomplete") else [])

    async def drop(self) -> None:
        """There will be no response."""
        if not self._begun:
            await self._unlock([])

    async def _unlock(self, items: Sequence[dict[str, Any]]) -> None:
        if self._conversation_id is not None:
            # where it was deleted meanwhile, it is nobody's
            with contextlib.suppress(ConversationNotFoundError, ConversationLockedError):
                await self._store.conversations.unlock(self._conversation_id, self._id, items)


def _failed(response: Response, error: StoreError) -> Response:
    """The response without what could not be stored."""
    told = ResponseError(code="server_error", message=f"The response could not be stored: {error}.")
    return response.model_copy(update={"status": "failed", "completed_at": None, "error": told, "output": []})
