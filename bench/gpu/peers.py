"""Peers in torch, with random weights of the same shapes: ``python -m bench.gpu.peers JOB``, started by the parent.

Needs torch and transformers, and nothing of ours but the report: the parent may start it with another Python.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu.report import Report, job

Add = Callable[..., None]

DECODES = ((1, 4096), (8, 1024), (64, 1024))
TINY_DECODES = ((1, 64), (2, 32))

#: Sequences, queries of each, keys of each; 32 query heads, 8 kv heads, head dim 128.
ATTENTION = ((64, 1, 4096), (64, 1, 1024), (1, 1, 65536), (1, 1, 4096), (1, 8192, 8192))
TINY_ATTENTION = ((2, 1, 64), (1, 64, 64))


def main() -> None:
    report = Report()
    wanted = job()
    import torch
    import transformers

    device = "cpu" if wanted["rehearse"] else "cuda"
    report.facts(versions={"torch": torch.__version__, "transformers": transformers.__version__})
    cases: Iterator[tuple[str, Callable[[Add], None]]]
    if wanted["kind"] == "sdpa":
        cases = sdpa_cases(device)
    else:
        cases = Transformers(wanted["config"], device, wanted["lengths"]).cases()

    def is_usable() -> bool:
        try:
            return bool((torch.zeros(1, device=device) + 1).item() == 1)
        except RuntimeError:
            return False

    report.run(((name, run) for name, run in cases if wanted["match"] in name), wanted["skip"], is_usable)


def seconds_of(run: Callable[[], Any], device: str, *, rounds: int = 5, round_seconds: float = 0.04) -> float:
    """Best mean time of a call over some rounds, called back to back."""
    import torch

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        run()
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    repeats = 1 if device == "cpu" else max(1, min(200, math.ceil(round_seconds / (time.perf_counter() - began))))
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        synchronize()
        best = min(best, (time.perf_counter() - began) / repeats)
    return best


# --- attention ---


def sdpa_cases(device: str) -> Iterator[tuple[str, Callable[[Add], None]]]:
    """torch's attention over a contiguous cache, which is easier than over pages."""
    for sequences, queries, keys in TINY_ATTENTION if device == "cpu" else ATTENTION:
        kind = f"decode {sequences}x{keys}" if queries == 1 else f"prefill {queries}"
        yield f"torch SDPA {kind}", partial(measure_sdpa, device, sequences, queries, keys)


def measure_sdpa(device: str, sequences: int, queries: int, keys: int, add: Add) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, kv_heads, head_dim = 32, 8, 128
    kv_bytes = 2 * sequences * kv_heads * keys * head_dim * 2
    count = 2 if device == "cpu" else max(1, min(32, (512 << 20) // kv_bytes))

    def random(*shape: int) -> Any:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    sets = [
        (
            random(sequences, heads, queries, head_dim),
            random(sequences, kv_heads, keys, head_dim),
            random(sequences, kv_heads, keys, head_dim),
        )
        for _ in range(count)
    ]

    def run() -> None:
        for q, k, v in sets:
            scaled_dot_product_attention(q, k, v, is_causal=queries > 1, enable_gqa=True)

    flops = 4 * sequences * heads * head_dim * queries * keys // (2 if queries > 1 else 1)
    add(bytes_moved=kv_bytes, flops=flops if queries > 1 else 0)
    if device == "cuda":
        for _ in range(3):
            run()
        graph = torch.cuda.CUDAGraph()  # or the launches would be timed
        with torch.cuda.graph(graph):
            run()
        add(seconds=seconds_of(graph.replay, device) / count)
    else:
        add(seconds=seconds_of(run, device) / count)


# --- transformers ---


class Transformers:
    """A model of transformers with random weights, as its users run it for speed."""

    def __init__(self, config: dict[str, Any], device: str, lengths: list[list[int]]) -> None:
        self.config, self.device, self.lengths = config, device, lengths
        self.model: Any = None

    def cases(self) -> Iterator[tuple[str, Callable[[Add], None]]]:
        yield "ready", self.load
        for sequences, length in TINY_DECODES if self.device == "cpu" else DECODES:
            yield f"decode {sequences}x{length}", partial(self.measure_decode, sequences, length)
        yield "conversations", self.measure_conversations

    def load(self, add: Add) -> None:
        """Weights made on the device; nothing is compiled yet."""
        began = time.perf_counter()
        self._load()
        add(ready_seconds=time.perf_counter() - began)

    def _load(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if self.model is None:  # or the process was started anew after an error
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps(self.config))
                config = AutoConfig.from_pretrained(folder)
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            self.model = model.eval()
        return self.model

    def measure_decode(self, sequences: int, length: int, add: Add) -> None:
        """A compiled step over a static cache with an argmax, as bare forward passes without ``generate``."""
        import torch
        from transformers import StaticCache

        model = self._load()
        torch._dynamo.reset()
        steps = 4 if self.device == "cpu" else 64
        with torch.inference_mode(), torch.device(self.device):
            cache = StaticCache(config=model.config, max_cache_len=length + 2 * steps)
            ids = torch.randint(0, model.config.vocab_size, (sequences, length))
            out = None
            for first in range(0, length, 1024):  # in chunks: the activations of 64 prompts would not fit
                out = model(ids[:, first : first + 1024], past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            del out

            def forward(token: Any, position: Any) -> Any:
                out = model(token, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=1)
                return out.logits[:, -1:].argmax(-1)

            how: dict[str, Any] = {"mode": "reduce-overhead"} if self.device == "cuda" else {"backend": "eager"}
            step = torch.compile(forward, dynamic=False, **how)
            position = torch.full((sequences, 1), length)
            began = time.perf_counter()
            for _ in range(steps):  # compiles, and records CUDA graphs
                token = step(token, position).clone()
                position = position + 1
            add(warm_up_seconds=time.perf_counter() - began)
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            token.cpu()
            began = time.perf_counter()
            for _ in range(steps):
                token = step(token, position).clone()
                position = position + 1
            token.cpu()
            seconds = (time.perf_counter() - began) / steps
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
        add(seconds=seconds, tokens_per_second=sequences / seconds, compiled_while_timed=compiled, graphs=graphs)

    def measure_conversations(self, add: Add) -> None:
        """transformers' continuous batching over the same requests with the same lengths, those of one in four."""
        import torch
        from transformers import GenerationConfig

        model = self._load()
        lengths = [(p % 24 + 1, o % 8 + 1) for p, o in self.lengths[:4]] if self.device == "cpu" else self.lengths[::4]
        if not hasattr(model, "generate_batch"):
            raise RuntimeError("this version of transformers has no continuous batching")
        # one length for all that decode together is what its API takes: outputs are cut at the mean
        mean = sum(output for _, output in lengths) // len(lengths)
        generator = torch.Generator().manual_seed(0)
        prompts = [torch.randint(0, model.config.vocab_size, (p,), generator=generator).tolist() for p, _ in lengths]
        settings = GenerationConfig(
            max_new_tokens=mean, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cuda_graph=self.device == "cuda"
        )
        if hasattr(model, "set_attn_implementation"):
            model.set_attn_implementation("paged|sdpa")
        began = time.perf_counter()
        outputs = model.generate_batch(inputs=prompts, generation_config=settings)
        seconds = time.perf_counter() - began
        made = sum(len(output.generated_tokens) for output in outputs.values())
        add(
            wall_seconds=seconds, requests=len(lengths), output_tokens=made, asked_tokens=mean * len(lengths),
            output_tokens_per_second=made / seconds,
        )  # fmt: skip


if __name__ == "__main__":
    main()
