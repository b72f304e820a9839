"""What a store raises: what was asked cannot be done, or the storage itself fails."""

from __future__ import annotations

from cvllm_jax.errors import GenerationError, IoError, shown

__all__ = [
    "ChainTooLongError",
    "ConversationLockedError",
    "ConversationNotFoundError",
    "DuplicateIdError",
    "ItemNotFoundError",
    "ItemsTooLargeError",
    "PreviousResponseNotFoundError",
    "ResponseActiveError",
    "ResponseClosedError",
    "ResponseNotFoundError",
    "StoreError",
    "StoreFormatError",
    "StoreLimitError",
    "StoreUnavailableError",
    "StoreValueError",
]


class StoreUnavailableError(IoError):
    """The storage cannot be reached, opened, read or written; the message names the file or the host."""


class StoreFormatError(StoreUnavailableError):
    """The file or database is not a store of this library, is damaged, or was written by a newer version."""


class StoreError(GenerationError):
    """What was asked cannot be done; the store is as it was. ``id`` is the id at fault, or None."""

    def __init__(self, message: str, about: str | None = None) -> None:
        super().__init__(message)
        self.id = about


class ResponseNotFoundError(StoreError):
    """There is no such response, or not any more."""

    def __init__(self, about: str) -> None:
        super().__init__(f"there is no response with the id {shown(about)}", about)


class PreviousResponseNotFoundError(StoreError):
    """A response to go on from, or one that it went on from, is not in the store, or not any more."""

    def __init__(self, about: str) -> None:
        super().__init__(f"there is no previous response with the id {shown(about)}", about)


class ResponseActiveError(StoreError):
    """The response is still in progress, so nothing can go on from it."""

    def __init__(self, about: str) -> None:
        super().__init__(f"the response {shown(about)} is still in progress", about)


class ResponseClosedError(StoreError):
    """The response has ended, or another process makes it: it cannot be written to."""

    def __init__(self, about: str) -> None:
        super().__init__(f"the response {shown(about)} has ended, or is made by another process", about)


class ChainTooLongError(StoreError):
    """The responses before this one are more, or larger, than are replayed."""


class ConversationNotFoundError(StoreError):
    """There is no such conversation, or not any more."""

    def __init__(self, about: str) -> None:
        super().__init__(f"there is no conversation with the id {shown(about)}", about)


class ConversationLockedError(StoreError):
    """A response that is in progress uses the conversation."""

    def __init__(self, about: str) -> None:
        super().__init__(f"the conversation {shown(about)} is in use by another response", about)


class ItemNotFoundError(StoreError):
    """There is no such item in this response or conversation."""

    def __init__(self, about: str) -> None:
        super().__init__(f"there is no item with the id {shown(about)}", about)


class ItemsTooLargeError(StoreError):
    """The items that were asked for are larger than is read at once."""


class DuplicateIdError(StoreError):
    """The id is taken."""

    def __init__(self, about: str) -> None:
        super().__init__(f"the id {shown(about)} is taken", about)


class StoreLimitError(StoreError):
    """One response or conversation alone is larger than the whole store may be."""


class StoreValueError(StoreError):
    """A value that cannot be stored: it is no JSON, nests too deep, or lacks an id or a sequence number."""
