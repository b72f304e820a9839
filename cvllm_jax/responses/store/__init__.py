"""Where responses and conversations are kept: SQLite or PostgreSQL, through SQLAlchemy::

async with await ResponseStore.open("responses.sqlite3", StoreLimits(max_responses=1000)) as store:
    await store.create("resp_1", {"id": "resp_1", "status": "in_progress"}, input_items=[...])
    await store.finish("resp_1", {"id": "resp_1", "status": "completed"}, output_items=[...])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvllm_jax.errors import ConfigError
from cvllm_jax.responses.store.errors import (
    ChainTooLongError,
    ConversationLockedError,
    ConversationNotFoundError,
    DuplicateIdError,
    ItemNotFoundError,
    ItemsTooLargeError,
    PreviousResponseNotFoundError,
    ResponseActiveError,
    ResponseClosedError,
    ResponseNotFoundError,
    StoreError,
    StoreFormatError,
    StoreLimitError,
    StoreUnavailableError,
    StoreValueError,
)
from cvllm_jax.responses.store.records import (
    ItemPage,
    JsonObject,
    Order,
    StoredConversation,
    StoredResponse,
    StoreLimits,
    StoreUsage,
)

if TYPE_CHECKING:
    from cvllm_jax.responses.store.conversations import Conversations
    from cvllm_jax.responses.store.store import ResponseStore

__all__ = [
    "ChainTooLongError",
    "ConversationLockedError",
    "ConversationNotFoundError",
    "Conversations",
    "DuplicateIdError",
    "ItemNotFoundError",
    "ItemPage",
    "ItemsTooLargeError",
    "JsonObject",
    "Order",
    "PreviousResponseNotFoundError",
    "ResponseActiveError",
    "ResponseClosedError",
    "ResponseNotFoundError",
    "ResponseStore",
    "StoreError",
    "StoreFormatError",
    "StoreLimitError",
    "StoreLimits",
    "StoreUnavailableError",
    "StoreUsage",
    "StoreValueError",
    "StoredConversation",
    "StoredResponse",
]


def __getattr__(name: str) -> Any:
    # errors and limits are there without SQLAlchemy
    if name not in ("Conversations", "ResponseStore"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import sqlalchemy.ext.asyncio  # noqa: F401
    except ImportError:
        raise ConfigError("the store of responses needs SQLAlchemy: pip install 'cvllm-jax[server]'") from None
    from cvllm_jax.responses.store.conversations import Conversations
    from cvllm_jax.responses.store.store import ResponseStore

    globals().update(Conversations=Conversations, ResponseStore=ResponseStore)
    return globals()[name]
