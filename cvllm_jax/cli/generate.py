"""``cvllm-jax generate``: one answer to one prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from cvllm_jax.cli.model import leave, load_engine
from cvllm_jax.cli.options import EngineOptions, SamplingOptions, with_options

__all__ = ["generate"]


@with_options(sampling=SamplingOptions, engine=EngineOptions)
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask, or - to read it from standard input.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            show_default=False,
            help="A GGUF file, a Hugging Face model folder, a hub id or scripted:FILE. Default: the demo model.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions that stand before the prompt.", show_default=False)
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without the chat template.")
    ] = False,
    *,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Answer one prompt; the text is printed while it is made."""
    if raw and system is not None:
        raise typer.BadParameter("--raw has no place for instructions", param_hint="--system")
    text = sys.stdin.read() if prompt == "-" else prompt
    with load_engine(model, engine, "cvllm_jax.openai") as loaded:
        from cvllm_jax.openai import ChatCompletionRequest, Message, OpenAIAdapter, model_sampling_defaults

        pieces: Iterator[str]
        if raw:
            params = sampling.params(model_sampling_defaults(loaded))
            pieces = (update.text for update in loaded.generate_stream_sync(loaded.tokenize(text), params))
        else:
            adapter = OpenAIAdapter(loaded)
            messages = [Message.user(text)]
            if system is not None:
                messages.insert(0, Message.system(system))
            request = ChatCompletionRequest.parse({"model": "local", "messages": messages, **sampling.request_fields()})
            pieces = (chunk.choices[0].delta.content or "" for chunk in adapter.chat_completion_stream_sync(request))
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        leave(loaded)
