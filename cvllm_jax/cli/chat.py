"""``cvllm-jax chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvllm_jax.cli.model import leave, load_engine
from cvllm_jax.cli.options import EngineOptions, SamplingOptions, with_options
from cvllm_jax.errors import Error

if TYPE_CHECKING:
    from cvllm_jax.openai import Message, OpenAIAdapter

__all__ = ["chat"]

_HELP = """\
/reset   forget the conversation
/quit    end (so does Ctrl-D)
/help    this list
Ctrl-C   stop the answer that is being written"""


@with_options(sampling=SamplingOptions, engine=EngineOptions)
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A GGUF file, a Hugging Face model folder, a hub id or scripted:FILE. Default: the demo model.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions that stand before the conversation.", show_default=False)
    ] = None,
    *,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Talk with a model in the terminal. /help lists what else can be typed."""
    with load_engine(model, engine, "cvllm_jax.openai") as loaded:
        from cvllm_jax.openai import OpenAIAdapter

        adapter = OpenAIAdapter(loaded)
        if sys.stdin.isatty():
            print(f"{loaded.model_info().name}. /help lists the commands, Ctrl-D ends.")
        with _line_history():
            Conversation(adapter, system, sampling.request_fields()).run()
        leave(loaded)


class Conversation:
    """The loop of questions and answers, and what has been said."""

    def __init__(self, adapter: OpenAIAdapter, system: str | None, fields: dict[str, Any]) -> None:
        self._adapter = adapter
        self._system = system
        self._fields = fields
        self._messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the instructions."""
        from cvllm_jax.openai import Message

        self._messages = [Message.system(self._system)] if self._system is not None else []

    def run(self) -> None:
        """Read lines until /quit or the end of the input."""
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit ends)")
                continue
            match line:
                case "":
                    continue
                case "/quit" | "/exit":
                    return
                case "/reset":
                    self.reset()
                    print("(the conversation is forgotten)")
                case "/help":
                    print(_HELP)
                case _ if line.startswith("/"):
                    print(f"there is no command {line.split()[0]}; /help lists them")
                case _:
                    self.ask(line)

    def ask(self, text: str) -> None:
        """Print the answer while it comes; Ctrl-C keeps what came. A refused turn leaves no trace."""
        from cvllm_jax.openai import ChatCompletionRequest, Message

        turns = [*self._messages, Message.user(text)]
        answer = ""
        try:
            request = ChatCompletionRequest.parse({"model": "local", "messages": turns, **self._fields})
            with contextlib.closing(self._adapter.chat_completion_stream_sync(request)) as chunks:
                for chunk in chunks:
                    piece = chunk.choices[0].delta.content or ""
                    answer += piece
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except Error as error:
            print(f"error: {error}", file=sys.stderr)
            return
        print()
        self._messages = [*turns, Message.assistant(answer)]


@contextlib.contextmanager
def _line_history() -> Iterator[None]:
    """Line editing and history for input(), kept between sessions, where readline exists."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    from cvllm_jax.checkpoints.cache import cache_dir

    path = cache_dir() / "chat_history"
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):  # none yet
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a read-only cache folder costs the history, not the chat
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
