"""What is asked of a server: natural chats, how long they are, and when each of them arrives."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cvllm_jax.errors import ConfigError

__all__ = ["ChatRequest", "Lengths", "Workload", "chat_requests", "chats", "conversation_lengths"]

#: English text has about four tokens for three words in the vocabularies of today.
WORDS_PER_TOKEN = 0.75


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request of a run."""

    messages: list[dict[str, str]]
    output_tokens: int
    arrival: float
    """Seconds after the start of the run."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers.

    Attributes:
      prompt, output: fixed lengths; None draws both from the lengths of conversations, see
        :func:`conversation_lengths`. A prompt's length is approximate, since it is made of words and each server has a
        tokenizer of its own: what was really read stands in the result.
      longest: of the conversations only those whose answers have no more tokens than this.
    """

    prompt: int | None = None
    output: int | None = None
    longest: int | None = None

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """``"chats"``, or ``"PROMPT:OUTPUT"`` in tokens.

        Raises:
          ConfigError: the text is neither.
        """
        if text == "chats":
            return cls()
        match = re.fullmatch(r"([1-9]\d{0,6}):([1-9]\d{0,6})", text)
        if match is None:
            raise ConfigError(f"lengths are 'chats' or PROMPT:OUTPUT in tokens, as in 512:128, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Tokens of prompt and answer for one request after another, without end."""
        if self.prompt is not None and self.output is not None:
            return itertools.repeat((self.prompt, self.output))
        longest = math.inf if self.longest is None else self.longest
        return itertools.cycle([pair for pair in conversation_lengths() if pair[1] <= longest])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A run of requests.

    Attributes:
      requests: how many.
      rate: arrivals a second, a Poisson process; None: all are there at the start.
      concurrency: requests that may run at the same time; None for any number.
      shared_prefix: tokens of a system message that all requests begin with, about; 0 for none.
      seed: of the arrivals and of the order of the chats.
    """

    requests: int
    lengths: Lengths = Lengths()
    rate: float | None = None
    concurrency: int | None = None
    shared_prefix: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("requests", 1), ("concurrency", 1), ("shared_prefix", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}", param=name)
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigError(f"rate must be a positive number of requests a second, not {self.rate}", param="rate")


@cache
def chats() -> list[dict[str, str]]:
    """Questions and answers that were written for this: ``{"user": ..., "assistant": ...}``."""
    return json.loads((Path(__file__).parent / "chats.json").read_text())


@cache
def conversation_lengths() -> list[tuple[int, int]]:
    """Tokens of 1,000 prompts and answers with the published means of ShareGPT; the file says how they were drawn."""
    pairs = json.loads((Path(__file__).parent / "conversation_lengths.json").read_text())["pairs"]
    return [(prompt, output) for prompt, output in pairs]


def chat_requests(workload: Workload) -> list[ChatRequest]:
    """The requests of a run, in the order of their arrival; the same for the same workload."""
    rng = random.Random(workload.seed)
    system = _words(rng.randrange(len(chats())), workload.shared_prefix)
    arrival = 0.0
    requests = []
    for number, (prompt, output) in zip(range(workload.requests), workload.lengths.pairs()):
        messages = [{"role": "system", "content": system}] if system else []
        # a number of its own: no request begins like another, or a prefix cache would answer for the engine
        text = f"Letter {number}: {_words(rng.randrange(len(chats())), prompt - 4)}"
        messages.append({"role": "user", "content": text})
        requests.append(ChatRequest(messages, output, arrival))
        if workload.rate is not None:
            arrival += rng.expovariate(workload.rate)
    return requests


def _words(start: int, tokens: int) -> str:
    """About so many tokens of the chats, from one of them on and round again."""
    count = max(0, round(tokens * WORDS_PER_TOKEN))
    texts = [f"{chat['user']} {chat['assistant']}" for chat in chats()]
    words = itertools.cycle(" ".join(texts[start:] + texts[:start]).split())
    return " ".join(itertools.islice(words, count))
