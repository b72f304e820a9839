"""A causal convolution of each channel by itself over the tokens of sequences, in XLA operations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

__all__ = ["convolve"]


def convolve(
    x: Float[Array, "B Q C"],
    weight: Float[Array, "C W"],
    inputs: Float[Array, "S W-1 C"],
    slots: Int[Array, "B"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
) -> tuple[Float[Array, "B Q C"], Float[Array, "S W-1 C"]]:
    """The sum of each token's input and those of the W - 1 tokens before it, weighted by ``weight``, in float32.

    Arguments:
      x: blocks of Q tokens. Blocks of one sequence come in order.
      inputs: what earlier steps left in each slot.
      slots: of each block's sequence.
      starts: position of each block's first token; a sequence has zeros before position 0.
      counts: tokens of each block that are no padding.

    Returns:
      The sums, meaningless for padding, and what the slots hold now. A block without tokens leaves its slot as it was.
    """
    last = weight.shape[1] - 1
    first, live = (starts == 0)[:, None, None], (counts > 0)[:, None, None]
    if x.shape[1] == 1:  # every sequence has one block
        old = inputs[slots]
        joined = jnp.concatenate([jnp.where(first, 0, old), x], axis=1)
        inputs = inputs.at[slots].set(jnp.where(live, joined[:, 1:], old), mode="promise_in_bounds")
    else:

        def follow(inputs: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            x, slot, first, live, count = block
            old = inputs[slot]
            before = jnp.where(first, 0, old)
            new = lax.dynamic_slice_in_dim(jnp.concatenate([before, x]), count, last)
            return inputs.at[slot].set(jnp.where(live, new, old), mode="promise_in_bounds"), before

        inputs, before = lax.scan(follow, inputs, (x, slots, first[:, 0], live[:, 0], counts))
        joined = jnp.concatenate([before, x], axis=1)
    wide, taps = joined.astype(jnp.float32), weight.astype(jnp.float32)
    return sum(wide[:, i : i + x.shape[1]] * taps[:, i] for i in range(last + 1)), inputs  # type: ignore[return-value]
