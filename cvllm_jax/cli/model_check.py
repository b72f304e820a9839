"""``cvllm-jax doctor MODEL``: whether a checkpoint would run here, without loading its weights."""

from __future__ import annotations

from collections.abc import Iterator

from cvllm_jax.checkpoints.checkpoint import Checkpoint, open_checkpoint
from cvllm_jax.cli.doctor import Remedy, available_bytes, folder_size, show_bytes, show_row, show_section
from cvllm_jax.errors import Error
from cvllm_jax.models.registry import Family, family_for
from cvllm_jax.text.chat_template import ChatTemplate
from cvllm_jax.text.tokenizer import Tokenizer

__all__ = ["check_model"]


def check_model(source: str) -> Iterator[Remedy]:
    """Open what an engine would open, a hub id with its download, and say what it would refuse."""
    show_section("Model")
    try:
        with open_checkpoint(source) as checkpoint:
            yield from _check(checkpoint, family_for(checkpoint.config))
    except Error as error:
        show_row("refused", " ".join(str(error).split()))
        yield Remedy("a model that runs (the reason is above); these do:", "cvllm-jax doctor --models", essential=True)


def _check(checkpoint: Checkpoint, family: Family) -> Iterator[Remedy]:
    config = family.config({**checkpoint.config, "max_sequence_length": None})
    show_row("name", f"{checkpoint.name}, {family.architectures[0]}, {checkpoint.format}")
    context = getattr(config, "context_length", None)
    show_row("context", f"{context:,} tokens" if context else "as the file says")
    stored = checkpoint.path.stat().st_size if checkpoint.path.is_file() else folder_size(checkpoint.path)
    show_row("files", show_bytes(stored))
    if (free := available_bytes()) is not None and stored > free:
        yield Remedy(
            f"memory: the files have {show_bytes(stored)}, and {show_bytes(free)} are available",
            "choose a smaller model or one in fewer bits, or --quantization int8",
        )
    if family.kind != "causal":
        show_row("use", "embeddings; it generates no text")
        return
    template = ChatTemplate.from_checkpoint(checkpoint, Tokenizer.from_checkpoint(checkpoint))
    show_row("chat template", "there is one" if template is not None else "none")
    if template is None:
        yield Remedy(
            "a chat template: chats are refused, /v1/completions and generate --raw work",
            "choose a model made for chats, often named -Instruct or -it",
        )
