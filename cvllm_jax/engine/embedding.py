"""The public engine of embedding models: texts in, vectors out, from any thread or task."""

from __future__ import annotations

import asyncio
import operator
import weakref
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cvllm_jax.checkpoints.cache import cache_dir
from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.checkpoints.dense import read_dense_weights
from cvllm_jax.checkpoints.pooling import Pooling, Prompts, pooling_of_gguf, read_pooling, read_prompts
from cvllm_jax.config import EngineConfig
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.embedding_queue import EmbeddingQueue
from cvllm_jax.engine.encoder import EncoderRunner, embed_shapes
from cvllm_jax.engine.lifetime import EngineLifetime
from cvllm_jax.engine.loading import describe, find_family, open_model, place_weights, prepare_device
from cvllm_jax.engine.weight_layouts import weight_layouts
from cvllm_jax.errors import ConfigError, GenerationError, shown
from cvllm_jax.info import EngineStats, ModelInfo
from cvllm_jax.text import Tokenizer
from cvllm_jax.text.byte_tokenizer import byte_tokenizer

__all__ = ["EmbeddingEngine", "EmbeddingOutput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOutput:
    """The vectors of one call."""

    vectors: Float[np.ndarray, "B D"]
    """One row of f32 a text, in the texts' order."""
    prompt_tokens: int
    """Tokens of all texts, with those that begin and end each."""


class EmbeddingEngine(EngineLifetime):
    """Loads an encoder and embeds texts with it; many callers may use one engine at once.

    Texts of different callers run together, up to ``max_batch_size`` of them and ``prefill_chunk_size`` tokens a step.
    ``EmbeddingEngine(config)`` and ``new_sync`` block while the model loads; ``await EmbeddingEngine.new(config)``
    loads in a thread. Close an engine, or use it in ``with``, to free its memory at once.

    A text is a string, which is framed as the model's files say ([CLS] text [SEP]), or a list of token ids, which are
    taken as they are.
    """

    chat_template = None
    """Encoders hold no conversations."""

    def __init__(self, config: EngineConfig) -> None:
        asked, device, dtype = prepare_device(config)
        mesh = mesh_of([device])
        with open_model(config) as checkpoint:
            family = find_family(checkpoint, "encoder")
            model = family.config(checkpoint.config)
            pooling, prompts = Pooling(), Prompts(by_name={})
            if checkpoint.gguf_metadata is not None:
                pooling = pooling_of_gguf(checkpoint.config, checkpoint.tensors)
            elif checkpoint.format != "dummy":
                pooling, prompts = read_pooling(checkpoint.path, checkpoint.config), read_prompts(checkpoint.path)
            dense = read_dense_weights(checkpoint, pooling.dense, model.hidden_size)
            self.tokenizer = _tokenizer(checkpoint, model.vocab_size)
            longest = _longest(config, min(pooling.max_tokens or model.context_length, model.context_length))
            layouts = weight_layouts(config, checkpoint, dtype, device, family, model)
            weights = place_weights(family, model, checkpoint, dtype, mesh, config, layouts)
        self.config = config
        self.pooling = pooling
        self.prompts = prompts
        self.dimensions = pooling.dense[-1].outputs if pooling.dense else model.hidden_size
        """Numbers of a vector."""
        self._info = describe(checkpoint, family, model, dtype, asked, longest, weights.parameters, layouts)
        shapes = embed_shapes(longest, config.prefill_chunk_size, config.max_batch_size)
        store = cache_dir() / "executables" if config.compilation_cache else None
        key = f"{family.name} {jnp.dtype(dtype)} {layouts}\n{model}"
        self.runner = EncoderRunner(weights, pooling, shapes, mesh, store=store, model_key=key, dense=dense)
        if config.warmup:
            self.runner.warm_up(config.progress)
        self._queue = EmbeddingQueue(self.runner, config.max_queue_size)
        self._finalizer = weakref.finalize(self, self._queue.close)

    def tokenize(self, text: str, *, prompt_name: str | None = None) -> list[int]:
        """Token ids of a text with the tokens that the model's files put around it, and a prompt before it.

        Arguments:
          prompt_name: one of ``prompts.by_name``; None for their default, which most models do not have.

        Raises:
          GenerationError: the model has no such prompt.
        """
        name = self.prompts.default if prompt_name is None else prompt_name
        if name is not None:
            if name not in self.prompts.by_name:
                known = ", ".join(self.prompts.by_name) or "none"
                raise GenerationError(
                    f"prompt_name is {shown(name)}; the prompts of this model are {known}", param="prompt_name"
                )
            text = self.prompts.by_name[name] + text
        before, after = self.tokenizer.frame
        return [*before, *self.tokenizer.encode(text.lower() if self.pooling.lowercase else text), *after]

    def detokenize(self, tokens: Items[int]) -> str:
        """Text of token ids, without control tokens; what the tokenizer normalised away stays away."""
        return self.tokenizer.decode(tokens)

    async def embed(self, texts: Items[str | Items[int]], *, prompt_name: str | None = None) -> EmbeddingOutput:
        """One vector a text. Cancelling the task that waits drops the texts that have not begun.

        Arguments:
          prompt_name: which of the model's prompts stands before each text that is a string; see :meth:`tokenize`.

        Raises:
          GenerationError: a text is empty or longer than ``model_info().max_sequence_length``, and texts are never
            cut; or the model has no such prompt.
          QueueFullError: ``max_queue_size`` calls are waiting.
        """
        tokens = await asyncio.to_thread(self._tokens, texts, prompt_name)
        future = self._queue.submit(tokens)
        return _output(tokens, await asyncio.wrap_future(future))

    def embed_sync(self, texts: Items[str | Items[int]], *, prompt_name: str | None = None) -> EmbeddingOutput:
        """:meth:`embed` for callers without an event loop."""
        tokens = self._tokens(texts, prompt_name)
        return _output(tokens, self._queue.submit(tokens).result())

    @property
    def failure(self) -> str | None:
        """None: a step that fails takes only its own texts with it."""
        return None

    def model_info(self) -> ModelInfo:
        return self._info

    def stats(self) -> EngineStats:
        """Counts of calls, texts' tokens and steps; an encoder has neither pages nor generated tokens."""
        queue = self._queue
        return EngineStats(
            running=queue.running, waiting=queue.waiting, pages_total=0, pages_free=0, pages_cached=0,
            requests_completed=queue.completed, prompt_tokens=queue.tokens, generated_tokens=0, cached_tokens=0,
            preemptions=0, drafted_tokens=0, accepted_tokens=0,
            steps=queue.steps, compilations=self.runner.programs.compilations,
        )  # fmt: skip

    def _tokens(self, texts: Items[str | Items[int]], prompt_name: str | None) -> list[list[int]]:
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise GenerationError(f"texts must be a list, not {shown(texts)}", param="input")
        tokenized = [self._checked(text, f"input[{index}]", prompt_name) for index, text in enumerate(texts)]
        if not tokenized:
            raise GenerationError("there are no texts to embed", param="input")
        return tokenized

    def _checked(self, text: str | Items[int], name: str, prompt_name: str | None) -> list[int]:
        limit = self._info.max_sequence_length
        try:
            if isinstance(text, str):
                tokens = self.tokenize(text, prompt_name=prompt_name)
            else:
                tokens = [operator.index(token) for token in text]
        except TypeError:
            raise GenerationError(f"{name} must be text or token ids, not {shown(text)}", param=name) from None
        if not text:
            raise GenerationError(f"{name} is empty", param=name)
        if len(tokens) > limit:
            raise GenerationError(f"{name} has {len(tokens)} tokens; this model takes at most {limit}", param=name)
        size = self._info.vocab_size
        if outside := [token for token in tokens if not 0 <= token < size]:
            raise GenerationError(
                f"{name} holds token {shown(outside[0])}; the vocabulary has ids 0 to {size - 1}", param=name
            )
        return tokens


def _output(tokens: list[list[int]], vectors: np.ndarray) -> EmbeddingOutput:
    return EmbeddingOutput(vectors=vectors, prompt_tokens=sum(map(len, tokens)))


def _tokenizer(checkpoint: Checkpoint, vocab_size: int) -> Tokenizer:
    return byte_tokenizer(vocab_size) if checkpoint.format == "dummy" else Tokenizer.from_checkpoint(checkpoint)


def _longest(config: EngineConfig, most: int) -> int:
    wanted = config.max_sequence_length
    if wanted is not None and wanted > most:
        raise ConfigError(
            f"max_sequence_length is {wanted}, but the model takes texts of {most} tokens", param="max_sequence_length"
        )
    return wanted or most
