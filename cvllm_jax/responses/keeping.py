"""Where one response is kept while it is made, and afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cvllm_jax.responses.store import ConversationLockedError, ConversationNotFoundError, ResponseNotFoundError
from cvllm_jax.responses.types import Item, Response, ResponseEvent

if TYPE_CHECKING:
    from cvllm_jax.responses.store import ResponseStore

__all__ = ["Keeper"]

_SAVE_EVENTS = 64
_SAVE_SECS = 0.5


class Keeper:
    """Stores one response, its items, and its events if it runs in the background; or only its conversation's items.

    A conversation was locked for this response before; it is unlocked with the response's end.
    """

    def __init__(
        self,
        store: ResponseStore,
        response_id: str,
        items: Sequence[Item],
        *,
        stored: bool,
        with_events: bool,
        previous_response_id: str | None,
        conversation_id: str | None,
    ) -> None:
        self._store = store
        self._id = response_id
        self._items = [item.model_dump(mode="json") for item in items]
        self._stored = stored
        self._with_events = with_events
        self._previous_response_id = previous_response_id
        self._conversation_id = conversation_id
        self._begun = False
        self._unsaved: list[ResponseEvent] = []
        self._saved_at = 0.0

    async def begin(self, response: Response) -> None:
        """The response has begun. From now on, a process that ends leaves an incomplete one."""
        if self._stored:
            await self._store.create(
                self._id,
                response.model_dump(mode="json"),
                input_items=self._items,
                previous_response_id=self._previous_response_id,
                conversation_id=self._conversation_id,
            )
        self._begun = True

    async def save(self, events: Sequence[ResponseEvent], *, last: bool = False) -> None:
        """Keep events, some at a time: a process that ends between loses a few."""
        if not (self._stored and self._with_events):
            return
        self._unsaved += events
        now = time.monotonic()
        if self._unsaved and (last or len(self._unsaved) >= _SAVE_EVENTS or now - self._saved_at > _SAVE_SECS):
            unsaved, self._unsaved, self._saved_at = self._unsaved, [], now
            await self._store.append_events(self._id, [event.model_dump(mode="json") for event in unsaved])

    async def finish(self, response: Response) -> None:
        """The response has ended, however that was."""
        output = [item.model_dump(mode="json") for item in response.output]
        if self._stored:
            try:
                await self._store.finish(self._id, response.model_dump(mode="json"), output)
            except ResponseNotFoundError:  # it was deleted meanwhile
                await self._unlock([])
        else:
            await self._unlock([*self._items, *output] if response.status in ("completed", "incomplete") else [])

    async def drop(self) -> None:
        """There will be no response."""
        if not self._begun:
            await self._unlock([])

    async def _unlock(self, items: Sequence[dict[str, object]]) -> None:
        if self._conversation_id is not None:
            # where it was deleted meanwhile, it is nobody's
            with contextlib.suppress(ConversationNotFoundError, ConversationLockedError):
                await self._store.conversations.unlock(self._conversation_id, self._id, items)
