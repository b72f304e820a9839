"""The whole engine with random weights: ready, decode, prefill, throughput, and what the host adds to a step."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.gpu.report import Report
from bench.machine import ROOT
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine
from cvllm_jax.engine.pool_sizes import page_bytes

LENGTHS = ROOT / "cvllm_jax" / "benchmarks" / "conversation_lengths.json"

#: Sequences, and tokens of each when the measurement starts.
DECODES = ((1, 4096), (8, 1024), (64, 1024))
TINY_DECODES = ((1, 64), (2, 32))
#: Tokens that the watched sequence decodes; the first ones are not counted.
TOKENS, SKIPPED = 128, 16

Add = Callable[..., None]


class EngineBench:
    """One engine, loaded when it is made.

    Arguments:
      model: a shape's name, or a folder with a config.json.
      settings: for EngineConfig, besides the model.
      first_start: whether this is the first start on an empty cache; only then all is measured, a later
        start shows how long a warm one takes.
    """

    def __init__(
        self, *, model: str, settings: dict[str, Any], first_start: bool, tiny: bool, report: Report
    ) -> None:
        self.tiny, self.first_start = tiny, first_start
        began = time.perf_counter()
        stages: dict[str, float] = {}

        def progress(stage: str, done: int, total: int) -> None:
            stages[stage] = round(time.perf_counter() - began, 2)
            print(f"{stages[stage]:7.2f} s: {stage} {done} of {total}", file=sys.stderr, flush=True)

        config = EngineConfig(
            model_path=model, load_format="dummy", enable_prefix_caching=False, progress=progress, **settings
        )
        self.engine = InferenceEngine(config)
        self.ready = time.perf_counter() - began
        self.info = self.engine.model_info()
        report.facts(seconds_when_done=stages)
        self.compiled = self.engine.stats().compilations
        report.facts(model=model, parameters=self.info.parameters, dtype=self.info.dtype, settings=settings)
        kernels = self.engine.runner.settings.kernels._asdict()
        report.facts(steps=self.compiled, pages=self.engine.stats().pages_total, kernels=kernels)
        self.rng = np.random.default_rng(0)

    def cases(self) -> Iterator[tuple[str, Callable[[Add], None]]]:
        if not self.first_start:
            yield "ready, warm cache", self.measure_ready
            return
        yield "ready, empty cache", self.measure_ready
        for sequences, length in TINY_DECODES if self.tiny else DECODES:
            yield f"decode {sequences}x{length}", lambda add, s=sequences, n=length: self.measure_decode(add, s, n)
        yield f"prefill {self.prompt}", self.measure_prefill
        sequences, length = TINY_DECODES[-1] if self.tiny else DECODES[-1]
        yield (
            f"decode {sequences}x{length} sampled",
            lambda add: self.measure_decode(add, sequences, length, temperature=0.8, top_p=0.95),
        )
        yield "conversations", self.measure_conversations
        yield "compiled after warm-up", self.count_compilations

    @property
    def prompt(self) -> int:
        return 128 if self.tiny else 8192

    # --- cases ---

    def measure_ready(self, add: Add) -> None:
        """Weights made, steps compiled or loaded, and the first token of a short prompt."""
        add(ready_seconds=self.ready)
        began = time.perf_counter()
        self.engine.generate_sync(self.tokens(16), GenerationParams(max_tokens=1, ignore_eos=True))
        add(first_token_seconds=time.perf_counter() - began)

    def measure_decode(self, add: Add, sequences: int, length: int, **sampling: float) -> None:
        """A step of the engine's loop, watched through the stream of one sequence among equals; and the bare step."""
        count, skipped = (8, 2) if self.tiny else (TOKENS, SKIPPED)
        gaps = np.diff(asyncio.run(self._arrivals(sequences, length, count, sampling)))[skipped:]
        seconds = float(gaps.mean())
        kv_bytes = sequences * (length + count / 2) * self.kv_bytes_of_token
        add(
            seconds=seconds, median_seconds=statistics.median(gaps), longest_seconds=float(gaps.max()),
            tokens_per_second=sequences / seconds, bytes_moved=self.weight_bytes + kv_bytes,
        )  # fmt: skip
        if not sampling:
            from bench.gpu.bare_step import bare_step_seconds

            bare = bare_step_seconds(self.engine.runner, sequences, length + count // 2, 3 if self.tiny else 50)
            add(bare_seconds=bare, host_gap=seconds / bare - 1)

    async def _arrivals(self, sequences: int, length: int, count: int, sampling: dict[str, float]) -> list[float]:
        """When each token of the last of several sequences came; the others decode all the while."""
        sampling = {"temperature": 0.0, **sampling}
        room = GenerationParams(max_tokens=None, ignore_eos=True, **sampling)
        others = [
            asyncio.create_task(self.engine.generate(self.tokens(length), room)) for _ in range(sequences - 1)
        ]
        await asyncio.sleep(0)  # they are in the queue before the watched one
        params = GenerationParams(max_tokens=count, ignore_eos=True, **sampling)
        times = []
        async for update in self.engine.generate_stream(self.tokens(length), params):
            if update.token is not None:
                times.append(time.perf_counter())
        for other in others:
            other.cancel()
        done = await asyncio.gather(*others, return_exceptions=True)
        # one that ended before would have made the last steps cheaper
        if any(not isinstance(result, asyncio.CancelledError) for result in done):
            raise RuntimeError(f"sequences ended while they were watched: {done!r:.200}")
        return times

    def measure_prefill(self, add: Add) -> None:
        """A long prompt until its first token, best of three."""
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            self.engine.generate_sync(self.tokens(self.prompt), GenerationParams(max_tokens=1, ignore_eos=True))
            best = min(best, time.perf_counter() - began)
        add(seconds=best, tokens_per_second=self.prompt / best, flops=self.prefill_flops)

    def measure_conversations(self, add: Add) -> None:
        """All requests at once, each with its own prompt and a fixed number of tokens to make."""
        pairs = json.loads(LENGTHS.read_text())["pairs"]
        if self.tiny:
            pairs = [(prompt % 48 + 1, output % 24 + 1) for prompt, output in pairs[:12]]
        prompts = [self.tokens(prompt) for prompt, _ in pairs]

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(
                *(
                    self.engine.generate(prompt, GenerationParams(max_tokens=output, ignore_eos=True))
                    for prompt, (_, output) in zip(prompts, pairs)
                )
            )

        before = self.engine.stats()
        began = time.perf_counter()
        outputs = asyncio.run(all_of_them())
        seconds = time.perf_counter() - began
        after = self.engine.stats()
        made = [len(output.tokens) for output in outputs]
        if made != [output for _, output in pairs]:
            raise RuntimeError(f"{sum(made)} tokens were made and {sum(o for _, o in pairs)} asked for")
        add(
            wall_seconds=seconds, requests=len(pairs), output_tokens_per_second=sum(made) / seconds,
            tokens_per_second=(sum(made) + sum(map(len, prompts))) / seconds,
            steps=after.steps - before.steps, preemptions=after.preemptions - before.preemptions,
        )  # fmt: skip

    def count_compilations(self, add: Add) -> None:
        """Steps that were compiled after the engine said that it was ready: there should be none."""
        compiled = self.engine.stats().compilations - self.compiled
        add(compilations=compiled, **({"status": "wrong"} if compiled else {}))

    # --- sizes ---

    def tokens(self, count: int) -> list[int]:
        """A prompt unlike all others."""
        return self.rng.integers(0, self.info.vocab_size - 1, count).tolist()

    @property
    def weight_bytes(self) -> int:
        """What every step reads: all weights, but of an embedding that is no output head only some rows."""
        leaves = self.engine.runner.leaves
        tables = [leaf.nbytes for leaf in leaves if leaf.ndim == 2 and leaf.shape[0] == self.info.vocab_size]
        return sum(leaf.nbytes for leaf in leaves) - (tables[0] if len(tables) > 1 else 0)

    @property
    def kv_bytes_of_token(self) -> int:
        runner = self.engine.runner
        return sum(page_bytes(runner.config, runner.settings.geometry)) // runner.settings.page_size

    @property
    def prefill_flops(self) -> int:
        """Two for each weight of the layers and each token, and causal attention; the head sees one token."""
        leaves = self.engine.runner.leaves
        layers = sum(leaf.size for leaf in leaves if leaf.ndim > 1 and leaf.shape[0] != self.info.vocab_size)
        attention = 4 * self.prompt**2 // 2 * self.info.num_attention_heads * self.info.head_dim * self.info.num_layers
        return 2 * layers * self.prompt + attention + 2 * self.info.vocab_size * self.info.hidden_size
