"""A stand-in for InferenceEngine whose answers a test writes down.

One token is one byte of UTF-8. It has the engine's public methods that the OpenAI layer uses and hands its
updates out through the engine's own streams.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import threading
import time
from dataclasses import dataclass

from cvllm_jax.engine.stream import GenerationStream, Mailbox, SyncGenerationStream
from cvllm_jax.errors import GenerationError, QueueFullError, TokenizationError
from cvllm_jax.info import EngineStats, ModelInfo
from cvllm_jax.params import (
    FinishReason,
    GenerationOutput,
    GenerationStats,
    RequestHandle,
    RequestUpdate,
    TopLogprob,
)
from cvllm_jax.text import ChatTemplate


class ByteTokenizer:
    vocab_size = 256
    leading_spaces = 0

    def __init__(self, control_tokens=()):
        """Each of ``control_tokens`` is one token, from 256 on."""
        self.control_tokens = dict(enumerate(control_tokens, 256))

    def is_special(self, token):
        return token in self.control_tokens

    def encode(self, text, allow_special=False):
        if not (self.control_tokens and allow_special):
            return list(text.encode())
        names = "|".join(map(re.escape, self.control_tokens.values()))
        ids = {name: token for token, name in self.control_tokens.items()}
        pieces = re.split(f"({names})", text)
        return [token for piece in pieces for token in ([ids[piece]] if piece in ids else piece.encode())]

    def encode_masked(self, text, unmask):
        return self.encode(text.translate(unmask), allow_special=True)

    def decode(self, ids, skip_special=True):
        pieces = [self.token_bytes(token) for token in ids if not (skip_special and self.is_special(token))]
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token):
        return self.control_tokens[token].encode() if token in self.control_tokens else bytes([token])


class PlainTemplate:
    """role: content, one line each; remembers what it was given. It knows no tools."""

    source = "{{ messages }}"
    tool_use_source = response_template = None

    def render(self, messages, tools=None, **kwargs):
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def __init__(self):
        self.calls = []

    def encode(self, messages, tools=None, add_generation_prompt=True, **kwargs):
        self.calls.append((messages, kwargs))
        if any(message["content"] == "raise!" for message in messages):
            raise TokenizationError("the chat template raised: no such conversation")
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return list("".join(lines).encode()) + (list(b"assistant: ") if add_generation_prompt else [])


@dataclass
class Script:
    """What every request is answered."""

    text: str = "Hello, wörld 👋."
    finish_reason: FinishReason = FinishReason.Stop
    delay: float = 0.0
    """Seconds before each token."""
    forever: bool = False
    """Say the text again and again until cancelled."""
    close_delay: float = 0.0
    """Seconds that closing the engine takes."""


class StubEngine:
    def __init__(
        self, script=None, *, context=512, generation_defaults=None, max_queue_size=64, template=None, control_tokens=()
    ):
        """``template`` is the source of a chat template; some of its markup may be ``control_tokens``.

        A list of scripts is said in turn, one a request.
        """
        self.script = script or Script()
        self.tokenizer = ByteTokenizer(control_tokens)
        self.chat_template = ChatTemplate(template, {}, self.tokenizer) if template else PlainTemplate()
        self.seen = []
        self.closed = False
        self.failure = None
        self.warming_up = False
        self._context = context
        self._defaults = generation_defaults or {}
        self._max_queue_size = max_queue_size
        self._running = {}
        self._lock = threading.Lock()
        self._count = 0

    def model_info(self):
        return ModelInfo(
            name="org/stub", architecture="Stub", parameters=1, vocab_size=256, context_length=self._context,
            max_sequence_length=self._context, num_layers=1, hidden_size=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=1, dtype="f32", quantization=None, device="cpu", eos_token_ids=(0,),
            generation_defaults=self._defaults,
        )  # fmt: skip

    def stats(self):
        running = len(self._running)
        return EngineStats(
            running=running, waiting=0, pages_total=64, pages_free=64 - running, pages_cached=0,
            requests_completed=self._count - running, prompt_tokens=0, generated_tokens=0, cached_tokens=0,
            preemptions=0, drafted_tokens=0, accepted_tokens=0, steps=0, compilations=0,
        )  # fmt: skip

    def close(self):
        self.closed = True
        for cancelled in list(self._running.values()):
            cancelled.set()
        if isinstance(self.script, Script):
            time.sleep(self.script.close_delay)

    def compile_grammar(self, grammar):
        """Checks nothing: what a script says is said."""

    def tokenize(self, text):
        return self.tokenizer.encode(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    async def generate(self, prompt, params):
        return await self.generate_stream(prompt, params).finish()

    def generate_stream(self, prompt, params):
        mailbox = Mailbox(asyncio.get_running_loop())
        return GenerationStream(self._start(prompt, params, mailbox), mailbox, self._cancel)

    def generate_stream_sync(self, prompt, params):
        mailbox = Mailbox(None)
        return SyncGenerationStream(self._start(prompt, params, mailbox), mailbox, self._cancel)

    def _start(self, prompt, params, mailbox):
        if any(token >= 256 for token in params.logit_bias):
            raise GenerationError("logit_bias: there are 256 tokens", param="logit_bias")
        with self._lock:
            if len(self._running) >= self._max_queue_size:
                raise QueueFullError(f"the queue is full: {self._max_queue_size} requests are waiting already")
            self._count += 1
            handle = RequestHandle(self._count)
            self._running[handle.id] = cancelled = threading.Event()
            self.seen.append((list(prompt), params))
        threading.Thread(target=self._run, args=(prompt, params, handle, cancelled, mailbox), daemon=True).start()
        return handle

    def _cancel(self, handle):
        if (cancelled := self._running.get(handle.id)) is not None:
            cancelled.set()

    def _run(self, prompt, params, handle, cancelled, mailbox):
        script = self.script
        if isinstance(script, list):
            script = script[(handle.id - 1) % len(script)]
        data = self.tokenizer.encode(script.text, allow_special=True)
        room = self._context - len(prompt)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tokens, text, reason = [], "", script.finish_reason
        while len(tokens) < len(data) or script.forever:
            if cancelled.wait(script.delay) if script.delay else cancelled.is_set():
                reason = FinishReason.Cancelled
                break
            if len(tokens) == limit and not script.forever:
                reason = FinishReason.Length
                break
            token = data[len(tokens) % len(data)]
            skipped = params.skip_special_tokens and self.tokenizer.is_special(token)
            piece = "" if skipped else decoder.decode(self.tokenizer.token_bytes(token))
            tokens.append(token)
            text += piece
            logprob = -0.5 if params.logprobs else None
            mailbox.put(RequestUpdate.Token(token, piece, logprob, handle, self._top(token, params)))
        output = GenerationOutput(
            tokens=tokens,
            text=text,
            finish_reason=reason,
            logprobs=[-0.5] * len(tokens) if params.logprobs else None,
            top_logprobs=[self._top(token, params) for token in tokens] if params.logprobs else None,
            stats=GenerationStats(prompt_tokens=len(prompt), generated_tokens=len(tokens), cached_tokens=16),
            handle=handle,
        )
        with self._lock:
            self._running.pop(handle.id)
        mailbox.put(RequestUpdate.Completed(output, handle))

    @staticmethod
    def _top(token, params):
        return [TopLogprob(token, -0.5), TopLogprob(255, -1.5)][: params.top_logprobs]
