"""``cvllm-jax convert``: a model to a folder that loads fast."""

from __future__ import annotations

from typing import Annotated

import typer

from cvllm_jax.cli.options import EngineOptions
from cvllm_jax.cli.progress import ProgressBars

__all__ = ["convert"]


def convert(
    model: Annotated[str, typer.Argument(help="A GGUF file, a Hugging Face model folder or a hub id.")],
    out: Annotated[str, typer.Argument(help="The folder to make.")],
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            "--quantization",
            help="Round the weights of layers: int8, int4 (groups of 32) or fp8, with another size of groups as in "
            "int4:128; none for plain numbers. Default: as an engine on this device would have them.",
            metavar="int8|int4|fp8|none",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Type of what is not quantized: auto, bf16, f16, f32. Default: auto.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="The device whose layout is wanted: cpu, cuda ... Default: the best.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit, for a model from the hub.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prepared checkpoint.")] = False,
) -> None:
    """Write a model's weights, tokenizer and configuration as a folder that loads without being converted again."""
    from cvllm_jax.cli.doctor import show_bytes

    options = EngineOptions(dtype=dtype, device=device, quantization=quantize, revision=revision)
    with ProgressBars() as progress:
        config = options.config(model, progress)
        from cvllm_jax.engine.converting import convert as write  # loads JAX: only once the options are right

        made = write(config, out, overwrite=overwrite)
    weights = made.quantization or made.dtype
    print(f"{made.path}: {show_bytes(made.size)}, weights in {weights}. Next: cvllm-jax serve {out}")
