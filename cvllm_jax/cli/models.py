"""``cvllm-jax doctor --models``: which checkpoints run, and what each kind is held to."""

from __future__ import annotations

from cvllm_jax.checkpoints.gguf_config import gguf_architectures
from cvllm_jax.checkpoints.safetensors_file import READABLE
from cvllm_jax.models.registry import FAMILIES

__all__ = ["show_models"]


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
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for architectures, names_of, by in rows:
        print(f"{architectures:<{widths[0]}}  {names_of:<{widths[1]}}  {by}")
    print(f"\nsafetensors: {', '.join(READABLE)}\nGGUF: every type that the gguf package dequantises")
    print("prepared: folders that cvllm-jax convert has written, held to the engine they were made of and to Orbax")
