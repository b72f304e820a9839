"""What the operator of a server decides."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ServerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    served_model_name: str | None = None
    """The id that requests name and /v1/models lists. None: the checkpoint's own name."""
    api_key: str | None = field(default=None, repr=False)
    """If set, every /v1 route wants ``Authorization: Bearer KEY``."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call this server from a browser; ``*`` for all."""
    max_body_bytes: int = 10_000_000
    keep_alive_seconds: float = 15.0
    """A stream that is silent for so long sends a comment, so that proxies keep it open."""
    tool_parser: str = "auto"
    """The format of the model's tool calls; see ``AdapterConfig``."""
    reasoning_parser: str = "auto"
    """The markup of the model's reasoning; see ``AdapterConfig``."""
    drain_seconds: float = 3.0
    """On shutdown running answers get so long to finish before they are ended."""
