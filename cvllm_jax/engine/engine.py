"""The public engine: requests in, tokens out, from any thread or task."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

from cvllm_jax.config import ConfigSettings, EngineConfig
from cvllm_jax.engine.constraint import GrammarConstraint
from cvllm_jax.engine.lifetime import EngineLifetime
from cvllm_jax.engine.loading import load
from cvllm_jax.engine.loop import Driver, EngineLoop
from cvllm_jax.engine.pages import PageAllocator
from cvllm_jax.engine.runner import Runner
from cvllm_jax.engine.scheduler import Scheduler
from cvllm_jax.engine.sequence import Sequence
from cvllm_jax.engine.steps import MAX_BIAS, MAX_END_TOKENS
from cvllm_jax.engine.stream import GenerationStream, Mailbox, SyncGenerationStream
from cvllm_jax.errors import GenerationError, shown
from cvllm_jax.info import CacheGroupStats, EngineStats, ModelInfo
from cvllm_jax.params import GenerationOutput, GenerationParams, InferenceRequest, RequestHandle, RequestUpdate
from cvllm_jax.text import ChatTemplate, Detokenizer, Tokenizer

if TYPE_CHECKING:
    from cvllm_jax.grammar import Grammar
    from cvllm_jax.grammar.compiler import GrammarCompiler
    from cvllm_jax.grammar.matcher import CompiledGrammar

__all__ = ["InferenceEngine", "InferenceEngineBuilder"]

_ids = itertools.count(1)  # of all engines, so that a handle cannot name another engine's request


class InferenceEngine(EngineLifetime):
    """Loads a model and generates with it; many callers may use one engine at once.

    ``InferenceEngine(config)`` and ``new_sync`` block while the model loads; ``await InferenceEngine.new(config)``
    loads in a thread. Close an engine, or use it in ``with``, to free its memory at once; an engine that is dropped
    ends its thread and frees its memory by itself.

    A prompt is a list of token ids, or text, which is tokenized as by :meth:`tokenize`.
    """

    def __init__(self, config: EngineConfig) -> None:
        loaded = load(config)
        self.config = config
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.chat_template: ChatTemplate | None = loaded.chat_template
        self._info = loaded.info
        settings = loaded.runner.settings
        # pages do not say what a recurrent layer remembered at their end
        prefix_caching = config.enable_prefix_caching and loaded.runner.config.recurrent is None
        pools = [
            PageAllocator(
                pages,
                page_size=settings.page_size,
                window=group.window,
                prefix_caching=prefix_caching,
            )
            for group, pages in zip(settings.groups, settings.num_pages, strict=True)
        ]
        scheduler = Scheduler(
            pools,
            slots=settings.max_batch_size,
            block=settings.steps.query_block,
            prefill_budget=config.prefill_chunk_size,
            chunked=config.enable_chunked_prefill,
            decode_steps=config.decode_steps,
            drafts=settings.steps.drafts,
            rows=settings.steps.decode_rows,
            hash_root=f"{loaded.info.name} {loaded.info.dtype} {config.kv_cache_dtype}".encode(),
        )
        self._loop = EngineLoop(scheduler, loaded.runner, max_queue_size=config.max_queue_size)
        self._updates: deque[RequestUpdate] = deque()
        self._grammars: GrammarCompiler | None = None  # made when the first grammar comes
        self._compiling = threading.Lock()
        self._totals = _Totals()
        self._finalizer = weakref.finalize(self, self._loop.close)

    @staticmethod
    def builder() -> InferenceEngineBuilder:
        """A builder with a method for each field of EngineConfig, ended by ``build()`` or ``build_sync()``."""
        return InferenceEngineBuilder()

    # --- text ---

    def tokenize(self, text: str) -> list[int]:
        """Token ids, with a beginning-of-sequence token if the model's files declare one."""
        ids = self.tokenizer.encode(text)
        if self.tokenizer.adds_bos and self.tokenizer.bos_token_id is not None:
            return [self.tokenizer.bos_token_id, *ids]
        return ids

    def detokenize(self, tokens: Items[int]) -> str:
        """Text of token ids, without control tokens."""
        return self.tokenizer.decode(self._token_ids("tokens", tokens))

    def compile_grammar(self, grammar: Grammar) -> CompiledGrammar:
        """A grammar for this model's vocabulary, from a cache where it was compiled before.

        Requests with ``GenerationParams.grammar`` call this themselves. It takes milliseconds, or a second or two where
        the grammar reaches its limits: call it in a thread first where an event loop must not wait.

        Raises:
          GrammarError: the grammar is invalid, too large, or has what cannot be enforced.
          ConfigError: llguidance is not installed.
        """
        with self._compiling:
            if self._grammars is None:
                from cvllm_jax.grammar.compiler import GrammarCompiler

                self.runner.prepare_halves()
                self._grammars = GrammarCompiler(self.tokenizer, self._info.eos_token_ids, self._info.vocab_size)
        compiled = self._grammars.compile(grammar)
        compiled.prepare()
        return compiled

    # --- generation ---

    async def generate(self, prompt: str | Items[int], params: GenerationParams | None = None) -> GenerationOutput:
        """Generate and return the whole output. Cancelling the task that waits ends the request."""
        if params is not None and params.grammar is not None:
            await asyncio.to_thread(self.compile_grammar, params.grammar)
        mailbox = Mailbox(asyncio.get_running_loop(), only_end=True)
        return await GenerationStream(self._start(prompt, params, mailbox), mailbox, self.cancel_request).finish()

    def generate_sync(self, prompt: str | Items[int], params: GenerationParams | None = None) -> GenerationOutput:
        """:meth:`generate` for callers without an event loop; blocks until the answer is whole."""
        mailbox = Mailbox(None, only_end=True)
        return SyncGenerationStream(self._start(prompt, params, mailbox), mailbox, self.cancel_request).finish()

    def generate_stream(self, prompt: str | Items[int], params: GenerationParams | None = None) -> GenerationStream:
        """Generate token by token; call it where an event loop runs.

        A grammar in the params is compiled here unless :meth:`compile_grammar` has done so.
        """
        mailbox = Mailbox(asyncio.get_running_loop())
        return GenerationStream(self._start(prompt, params, mailbox), mailbox, self.cancel_request)

    def generate_stream_sync(
        self, prompt: str | Items[int], params: GenerationParams | None = None
    ) -> SyncGenerationStream:
        """:meth:`generate_stream` for callers without an event loop: a plain iterator of TokenUpdate."""
        mailbox = Mailbox(None)
        return SyncGenerationStream(self._start(prompt, params, mailbox), mailbox, self.cancel_request)

    def _start(self, prompt: str | Items[int], params: GenerationParams | None, mailbox: Mailbox) -> RequestHandle:
        sequence = self._sequence(prompt, params or GenerationParams())
        sequence.report = mailbox.put
        self._submit(sequence, Driver.BACKGROUND)
        return sequence.handle

    # --- a loop of the caller's own ---

    def add_request(self, request: InferenceRequest) -> RequestHandle:
        """Queue a request for :meth:`step`.

        Raises ConfigError while the background loop runs requests of ``generate`` or ``generate_stream``.
        """
        if not isinstance(request, InferenceRequest):
            raise GenerationError(f"add_request takes an InferenceRequest, not {type(request).__name__}")
        sequence = self._sequence(request.prompt, request.params)
        sequence.report = self._updates.append
        self._submit(sequence, Driver.CALLER)
        return sequence.handle

    def step(self) -> list[RequestUpdate]:
        """Run one step of the requests given to :meth:`add_request` and return what came of it."""
        self._loop.step()
        updates = []
        with contextlib.suppress(IndexError):  # two threads may step: each update goes to one of them
            while True:
                updates.append(self._updates.popleft())
        return updates

    def cancel_request(self, handle: RequestHandle) -> None:
        """End a request in any state; its output has FinishReason.Cancelled and what was made.

        One that has ended already stays as it is.
        """
        if not isinstance(handle, RequestHandle):
            raise GenerationError(f"cancel_request takes a RequestHandle, not {type(handle).__name__}")
        self._loop.cancel(handle.id)

    # --- what there is ---

    @property
    def runner(self) -> Runner:
        """The compiled steps and the device's buffers."""
        return self._loop.runner

    @property
    def warming_up(self) -> bool:
        """Whether a thread still loads or compiles steps; requests are served meanwhile."""
        return self.runner.warming_up

    def wait_until_warm(self, timeout: float | None = None) -> bool:
        """Wait until every step is loaded, as before measuring; False if that took more than ``timeout`` seconds."""
        return self.runner.wait_until_warm(timeout)

    @property
    def failure(self) -> str | None:
        """Why the engine has stopped for good, or None while it works. What stops it is logged too."""
        return self._loop.failure

    def model_info(self) -> ModelInfo:
        """The model's shape, limits and types, and the sampling that its files recommend."""
        return self._info

    def stats(self) -> EngineStats:
        """Requests and pages at this moment, and totals since the engine began."""
        scheduler, totals = self._loop.scheduler, self._totals
        groups = tuple(
            CacheGroupStats(pool.window, pool.capacity, pool.available, pool.cached) for pool in scheduler.paging.pools
        )
        return EngineStats(
            running=len(scheduler.running),
            waiting=self._loop.waiting,
            pages_total=sum(group.pages_total for group in groups),
            pages_free=sum(group.pages_free for group in groups),
            pages_cached=sum(group.pages_cached for group in groups),
            cache_groups=groups,
            requests_completed=totals.requests,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
            cached_tokens=totals.cached_tokens,
            preemptions=scheduler.preemptions,
            drafted_tokens=scheduler.speculation.drafted_tokens,
            accepted_tokens=scheduler.speculation.accepted_tokens,
            steps=self._loop.steps,
            compilations=self._loop.runner.programs.compilations,
        )

    # --- checking requests ---

    def _submit(self, sequence: Sequence, driver: Driver) -> None:
        deliver, totals = sequence.report, self._totals

        def report(update: RequestUpdate) -> None:
            if not isinstance(update, RequestUpdate.Token):
                totals.count(update)
            deliver(update)

        sequence.report = report
        self._loop.submit(sequence, driver)

    def _sequence(self, prompt: str | Items[int], params: GenerationParams) -> Sequence:
        """Check a request against the model and the context, and make its sequence."""
        if not isinstance(params, GenerationParams):
            raise GenerationError(f"params must be GenerationParams, not {type(params).__name__}", param="params")
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else self._token_ids("prompt", prompt)
        limit = self._info.max_sequence_length
        if not tokens:
            raise GenerationError("the prompt is empty", param="prompt")
        if len(tokens) >= limit:
            raise GenerationError(
                f"the prompt has {len(tokens)} tokens; with room for an answer this engine takes at most {limit - 1}",
                param="prompt",
            )
        room = limit - len(tokens)
        if params.max_tokens_is_explicit and params.max_tokens is not None and params.max_tokens > room:
            raise GenerationError(
                f"max_tokens is {params.max_tokens}, but after a prompt of {len(tokens)} tokens the context of {limit} "
                f"has room for {room}",
                param="max_tokens",
            )
        if params.min_tokens > room:
            raise GenerationError(
                f"min_tokens is {params.min_tokens}, but there is room for {room}", param="min_tokens"
            )
        self._token_ids("stop_token_ids", params.stop_token_ids)
        self._token_ids("logit_bias", list(params.logit_bias))
        if len(params.logit_bias) > MAX_BIAS:
            raise GenerationError(
                f"logit_bias names {len(params.logit_bias)} tokens; at most {MAX_BIAS} are supported",
                param="logit_bias",
            )
        end_tokens = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else frozenset(self._info.eos_token_ids)
        )
        if params.min_tokens and len(end_tokens) > MAX_END_TOKENS:
            raise GenerationError(
                f"min_tokens with {len(end_tokens)} end tokens; at most {MAX_END_TOKENS} are supported",
                param="stop_token_ids",
            )
        constraint = None if params.grammar is None else self._constraint(params, end_tokens)
        seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        return Sequence(
            handle=RequestHandle(next(_ids)),
            params=params,
            tokens=tokens,
            prompt_length=len(tokens),
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            end_tokens=end_tokens,
            seed=(seed & 0xFFFFFFFF, seed >> 32),
            decoder=Detokenizer(self.tokenizer, params.skip_special_tokens),
            constraint=constraint,
            report=_nobody,
        )

    def _constraint(self, params: GenerationParams, end_tokens: frozenset[int]) -> GrammarConstraint:
        if params.ignore_eos:
            message = "ignore_eos cannot go with a grammar, which decides where the answer ends"
            raise GenerationError(message, param="ignore_eos")
        return GrammarConstraint(self.compile_grammar(params.grammar), params.min_tokens, end_tokens)

    def _token_ids(self, name: str, tokens: Items[int]) -> list[int]:
        """The tokens as integers of Python's own, whatever kind of integers and list they are."""
        if not isinstance(tokens, Iterable) or isinstance(tokens, str | bytes | bytearray | Mapping):
            text = "text or " if name == "prompt" else ""
            raise GenerationError(f"{name} must be {text}a list of token ids, not {type(tokens).__name__}", param=name)
        size, ids = self._info.vocab_size, []
        for token in tokens:
            try:
                if isinstance(token, bool):
                    raise TypeError
                ids.append(operator.index(token))
            except TypeError:
                message = f"{name} must hold token ids, whole numbers, not {shown(token)}"
                raise GenerationError(message, param=name) from None
            if not 0 <= ids[-1] < size:
                message = f"{name} holds token {shown(ids[-1])}; the vocabulary has ids 0 to {size - 1}"
                raise GenerationError(message, param=name)
        return ids


class InferenceEngineBuilder(ConfigSettings):
    """``await InferenceEngine.builder().model_path(p).max_batch_size(16).build()``."""

    async def build(self) -> InferenceEngine:
        """Load the model in a thread, as :meth:`InferenceEngine.new` does."""
        return await InferenceEngine.new(self.config())

    def build_sync(self) -> InferenceEngine:
        """:meth:`build` for callers without an event loop; blocks until the engine is ready."""
        return InferenceEngine(self.config())


class _Totals:
    """Sums over ended requests."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.generated_tokens = self.cached_tokens = 0

    def count(self, update: RequestUpdate) -> None:
        assert isinstance(update, RequestUpdate.Completed | RequestUpdate.Failed)
        stats = update.output.stats
        self.requests += 1
        self.prompt_tokens += stats.prompt_tokens
        self.generated_tokens += stats.generated_tokens
        self.cached_tokens += stats.cached_tokens


def _nobody(update: RequestUpdate) -> None:
    """Placeholder until a request has a caller."""
