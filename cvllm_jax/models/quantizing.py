"""Which weights of a model are quantised, and how: one rule for every family.

- Matrices of layers (:class:`~cvllm_jax.models.layers.Linear`), also those of experts, take the layout that was asked
  for. Those of experts are in bytes, so that XLA reads the experts that some token has and no others.
- Under int4 the matrices of attention are int8 with one scale a row: 12 % of the matrices' bytes in Qwen2.5-0.5B,
  and more than half of the loss (``docs/quantization.md``).
- Embeddings and the output head are int8 with one scale a token, under int8 and int4: they decide between tokens
  that are nearly alike, and four bits would cost more there than in all layers. They stay as they are under fp8.
- Norms, biases and routers stay as they are.

Where layouts are those of the files, each weight has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flax import nnx

from cvllm_jax.models.layers import Embedding, Linear, Weighted, WeightLayout
from cvllm_jax.models.layers.moe import ExpertLinear

__all__ = ["CannotQuantizeError", "Layouts", "quantize_weights"]

#: Attention's matrices, in the layers of all families.
_OF_ATTENTION = frozenset({"qkv", "qkvz", "q", "q_a", "k", "kv_a", "output"})

#: One layout for all matrices of layers, or those of some weights by their dotted paths; None: plain numbers.
type Layouts = WeightLayout | Mapping[str, WeightLayout] | None


class CannotQuantizeError(ValueError):
    """A model has weights that a layout does not fit; the message completes "the model cannot be quantized: "."""


def quantize_weights(model: nnx.Module, layouts: WeightLayout | Mapping[str, WeightLayout]) -> None:
    """Have room for quantised weights in an abstract model.

    Raises:
      CannotQuantizeError: a weight does not divide into the layout's groups, or there is none.
    """
    weights = {
        ".".join(map(str, path)): module for path, module in nnx.iter_modules(model) if isinstance(module, Weighted)
    }
    for path, module in weights.items():
        layout = _layout_of(path, module, layouts)
        if layout is None:
            continue
        try:
            module.quantize(replace(layout, in_bytes=layout.in_bytes or isinstance(module, ExpertLinear)))
        except ValueError as error:
            raise CannotQuantizeError(f"the {error} of {path}") from None
    if not any(isinstance(module, Linear | ExpertLinear) for path, module in weights.items() if path != "head"):
        raise CannotQuantizeError("it has no matrices of layers")


def _layout_of(
    path: str, module: Weighted, layouts: WeightLayout | Mapping[str, WeightLayout]
) -> WeightLayout | None:
    if not isinstance(layouts, WeightLayout):
        return layouts.get(path)
    by_row = WeightLayout(method="int8", implementation=layouts.implementation)
    if isinstance(module, Embedding) or path == "head":
        return None if layouts.method == "fp8" else by_row
    is_delicate = layouts.method == "int4" and path.rpartition(".")[2] in _OF_ATTENTION
    return by_row if is_delicate else layouts
