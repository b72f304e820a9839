"""What is compared: the same token ids for every engine, made from the chats of cvllm_jax.benchmarks."""

from cvllm_jax.benchmarks.in_process import Case
from cvllm_jax.benchmarks.workload import chats
from cvllm_jax.text import ChatTemplate, Tokenizer


def workloads(tokenizer: Tokenizer, template: ChatTemplate, new_tokens: int) -> list[Case]:
    known = chats()

    def conversation(start: int, length: int) -> list[int]:
        """``length`` tokens of a long conversation that begins with chat number ``start``."""
        turns = [
            {"role": role, "content": chat[role]}
            for chat in [*known[start:], *known[:start]]
            for role in ("user", "assistant")
        ]
        return template.encode(turns)[:length]

    def decode(name: str, prompts: list[list[int]]) -> Case:
        return Case(name=name, phase="decode", prompts=prompts, outputs=[new_tokens] * len(prompts))

    questions = [template.encode([{"role": "user", "content": chat["user"]}]) for chat in known[:8]]
    long = conversation(0, 512)
    return [
        Case(name="prefill of 512", phase="prefill", prompts=[long], outputs=[1]),
        decode("decode 1 at 512", [long]),
        decode("decode 8 at 64", [conversation(start, 64) for start in range(8)]),
        decode("decode 8 questions", questions),
    ]
