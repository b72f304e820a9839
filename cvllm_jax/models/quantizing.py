"""Which weights of a model are quantised, and how: one rule for every family.

- Matrices of layers (:class:`~cvllm_jax.models.layers.Linear`) take the layout that was asked for.
- Embeddings and the output head are int8 with one scale a token, under int8 and int4: they decide between tokens
  that are nearly alike, and four bits would cost more there than in all layers. They stay as they are under fp8, and
  where the layout is that of the files.
- Norms and biases stay as they are.
"""

from __future__ import annotations

import jax
from flax import nnx

from cvllm_jax.models.layers import Embedding, Linear, WeightLayout

__all__ = ["CannotQuantizeError", "quantize_weights"]


class CannotQuantizeError(ValueError):
    """A model has weights that a layout does not fit; the message completes "the model cannot be quantized: "."""


def quantize_weights(model: nnx.Module, layout: WeightLayout) -> None:
    """Have room for quantised weights in an abstract model.

    Raises:
      CannotQuantizeError: a weight does not divide into the layout's groups, is a stack of experts, or there is none.
    """
    ends = WeightLayout(method="int8", implementation=layout.implementation)
    linears = 0
    for path, module in list(nnx.iter_modules(model)):
        if not isinstance(module, Linear | Embedding):
            continue
        of_tokens = isinstance(module, Embedding) or path[-1] == "head"
        linears += not of_tokens
        if of_tokens and (layout.method == "fp8" or not layout.of_tokens):
            continue
        try:
            module.quantize(ends if of_tokens else layout)
        except ValueError as error:
            raise CannotQuantizeError(f"the {error} of {'.'.join(map(str, path))}") from None
    if not linears:
        raise CannotQuantizeError("it has no matrices of layers")
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if len(jax.tree.leaves(parameter)[0].shape) > 2:
            raise CannotQuantizeError(f"{'.'.join(map(str, path))} is a stack of experts, which is not supported yet")
