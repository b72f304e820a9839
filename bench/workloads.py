"""What is measured: the same token ids for every engine, made from the chats in prompts.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvllm_jax.text import ChatTemplate, Tokenizer

CHATS = json.loads((Path(__file__).parent / "prompts.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Workload:
    name: str
    phase: Literal["prefill", "decode"]
    """prefill: time to the first token. decode: from every sequence's first token to the last one of all."""
    prompts: list[list[int]]
    """Token ids; all run at the same time."""
    new_tokens: int


def workloads(tokenizer: Tokenizer, template: ChatTemplate, new_tokens: int) -> list[Workload]:
    def conversation(start: int, length: int) -> list[int]:
        """``length`` tokens of a long conversation that begins with chat number ``start``."""
        turns = [
            {"role": role, "content": chat[role]}
            for chat in [*CHATS[start:], *CHATS[:start]]
            for role in ("user", "assistant")
        ]
        return template.encode(turns)[:length]

    questions = [template.encode([{"role": "user", "content": chat["user"]}]) for chat in CHATS[:8]]
    long = conversation(0, 512)
    short = [conversation(start, 64) for start in range(8)]
    return [
        Workload(name="prefill of 512", phase="prefill", prompts=[long], new_tokens=1),
        Workload(name="decode 1 at 512", phase="decode", prompts=[long], new_tokens=new_tokens),
        Workload(name="decode 8 at 64", phase="decode", prompts=short, new_tokens=new_tokens),
        Workload(name="decode 8 questions", phase="decode", prompts=questions, new_tokens=new_tokens),
    ]
