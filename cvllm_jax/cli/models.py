"""``cvllm-jax doctor --models``: which checkpoints run, and what each kind is held to."""

from __future__ import annotations

from collections.abc import Sequence

from cvllm_jax.checkpoints.gguf_config import gguf_architectures
from cvllm_jax.checkpoints.safetensors_file import READABLE
from cvllm_jax.models.registry import FAMILIES

__all__ = ["FOLDER_METHODS", "show_models"]

#: Of each way in which the weights of a folder may be quantised: its name for people, what it is kept as, its judge.
FOLDER_METHODS = {
    "fp8": ("FP8, one scale or blocks", "fp8", "transformers' finegrained_fp8"),
    "compressed-tensors": ("compressed-tensors w4a16, w8a16, w8a8", "int4, int8, fp8", "compressed-tensors"),
    "gptq": ("GPTQ, 4 and 8 bits", "int4, int8", "gptqmodel's packer"),
    "awq": ("AWQ (gemm), 4 bits", "int4", "gptqmodel's packer, autoawq's dequantisation"),
    "mxfp4": ("MXFP4 (gpt-oss)", "MXFP4", "transformers' gpt-oss"),
}

_FORMATS = (
    (f"safetensors in {', '.join(READABLE)}", "as they are", "safetensors' own writer"),
    *((f"safetensors in {name}", kept, judge) for name, kept, judge in FOLDER_METHODS.values()),
    ("GGUF in F32, F16, BF16", "as they are", "gguf.quants"),
    ("GGUF in few bits, every type that gguf reads", "int4, int8, MXFP4; int8 on a CPU", "gguf.quants"),
    ("prepared, by cvllm-jax convert", "as it was converted", "the engine it was made of, Orbax"),
)

_ROUNDED = (
    ("--quantization int8, int4, fp8", "every family", "products in float64; perplexity (docs/quantization.md)"),
    ("--kv-cache-dtype int8, fp8", "every causal family", "attention in float64; KL (docs/quantization.md)"),
)


def show_models() -> None:
    """Print the families with their names in both formats, and what the tests compare each with."""
    gguf: dict[str, list[str]] = {}
    for (name, _), architecture in gguf_architectures().items():
        for variant in (architecture.architecture, *architecture.variants):
            gguf.setdefault(variant, []).append(name)
    rows = [("architecture", "GGUF", "tested by")]
    for family in FAMILIES:
        names = [name for architecture in family.architectures for name in gguf.get(architecture, ())]
        judges = ["transformers' logits" if family.kind == "causal" else "transformers' vectors"]
        judges += ["llama.cpp's converter"] if names else []
        rows += [(", ".join(family.architectures), ", ".join(names), ", ".join(judges))]
    _print_table(rows)
    _print_table([("format", "kept as", "tested by"), *_FORMATS])
    _print_table([("rounded while loading or running", "for", "tested by"), *_ROUNDED])


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need, and an empty line behind."""
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for first, second, third in rows:
        print(f"{first:<{widths[0]}}  {second:<{widths[1]}}  {third}")
    print()
