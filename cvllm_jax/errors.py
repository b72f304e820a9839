"""The library's error type: one exception class for each kind the API names.

Every error is an :class:`Error`. The kinds are importable by their long names
(``ModelLoadError``) and reachable from the base class by the short ones
(``Error.ModelLoad``), so both of these work::

    except ModelLoadError as error: ...
    except Error.ModelLoad as error: ...
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CancelledError",
    "ConfigError",
    "DeviceError",
    "EngineStoppedError",
    "Error",
    "GenerationError",
    "IoError",
    "McpConnectionError",
    "McpToolExecutionError",
    "ModelLoadError",
    "OtherError",
    "QueueFullError",
    "TokenizationError",
    "WrongEngineError",
    "shown",
]


class Error(Exception):
    """Base of every error this library raises on purpose.

    ``str(error)`` is one sentence that a user can act on. ``param`` names the
    argument or request field at fault where there is one.
    """

    kind: ClassVar[str] = "Other"

    ModelLoad: ClassVar[type[ModelLoadError]]
    Tokenization: ClassVar[type[TokenizationError]]
    Generation: ClassVar[type[GenerationError]]
    Device: ClassVar[type[DeviceError]]
    Config: ClassVar[type[ConfigError]]
    McpConnection: ClassVar[type[McpConnectionError]]
    McpToolExecution: ClassVar[type[McpToolExecutionError]]
    Cancelled: ClassVar[type[CancelledError]]
    Io: ClassVar[type[IoError]]
    Other: ClassVar[type[OtherError]]

    def __init__(self, message: str = "", *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @property
    def message(self) -> str:
        """What is wrong, in one sentence; the same as ``str(error)``."""
        return str(self)


class ModelLoadError(Error):
    """A checkpoint could not be found, read or understood."""

    kind = "ModelLoad"


class WrongEngineError(ModelLoadError):
    """The checkpoint is for another kind of engine: one that generates, or one that embeds."""


class TokenizationError(Error):
    """Text or token ids that the tokenizer or chat template cannot handle."""

    kind = "Tokenization"


class GenerationError(Error):
    """A request that cannot be run as asked, or that failed while running."""

    kind = "Generation"


class QueueFullError(GenerationError):
    """The engine's queue is full; the same request may be accepted later."""


class EngineStoppedError(GenerationError):
    """The engine has failed in a way that it cannot recover from; a new one has to be made."""


class DeviceError(Error):
    """The device is missing, unusable or out of memory."""

    kind = "Device"


class ConfigError(Error):
    """A setting that is invalid, contradictory or cannot be honoured."""

    kind = "Config"


class McpConnectionError(Error):
    """An MCP server could not be reached."""

    kind = "McpConnection"


class McpToolExecutionError(Error):
    """A tool call could not be carried out, such as one whose arguments are no JSON object."""

    kind = "McpToolExecution"


class CancelledError(Error):
    """The request was cancelled, by its caller or because the engine closed, before it had an answer."""

    kind = "Cancelled"


class IoError(Error, OSError):
    """A file or network operation failed; also an :class:`OSError`."""

    kind = "Io"


class OtherError(Error):
    """Anything else, including defects of this library."""

    kind = "Other"


for _kind in (
    ModelLoadError, TokenizationError, GenerationError, DeviceError, ConfigError, McpConnectionError,
    McpToolExecutionError, CancelledError, IoError, OtherError,
):  # fmt: skip
    setattr(Error, _kind.kind, _kind)


def shown(value: object) -> str:
    """``value`` as an error message shows it: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print very long ones
    try:
        text = repr(value)
    except ValueError:  # a list that holds such a number
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
