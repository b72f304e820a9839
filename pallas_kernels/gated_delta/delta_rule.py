"""The gated delta rule (arXiv 2412.06464) in XLA operations: token by token to decode, in chunks for prompts.

A head remembers a matrix S ``[K, V]``. At each token it fades, what it answers to the token's key is corrected towards
the token's value, and the query reads it:

    S = exp(decay) S;  S = S + beta k (v - k S);  y = q S

Over a chunk of tokens the corrections depend on each other through a unit lower triangular matrix (the WY form, arXiv
2406.06484). Its inverse makes products of matrices of everything but the step from chunk to chunk.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

__all__ = ["CHUNK", "attend"]

#: Tokens of a chunk.
CHUNK = 64

# GPUs round the factors of f32 products to 10 bits unless told otherwise, and errors of the memory stay in it
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def attend(
    q: Float[Array, "B Q N K"],
    k: Float[Array, "B Q N K"],
    v: Float[Array, "B Q N V"],
    decay: Float[Array, "B Q N"],
    beta: Float[Array, "B Q N"],
    memory: Float[Array, "S N K V"],
    slots: Int[Array, "B"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
) -> tuple[Float[Array, "B Q N V"], Float[Array, "S N K V"]]:
    """What the queries of blocks of tokens read, and what the slots' memories are after them.

    Arguments:
      q, k, v: float32; queries scaled, keys of length 1. Blocks of one sequence come in order.
      decay: logarithm of what a token leaves of the memory, at most 0.
      beta: how far it corrects the memory, from 0 to 1.
      memory: what earlier steps left in each slot.
      slots: of each block's sequence.
      starts: position of each block's first token; a sequence starts with a memory of zeros.
      counts: tokens of each block that are no padding.

    Returns:
      As ``v``, meaningless for padding, and the memories. A block without tokens leaves its slot's as it was.
    """
    real = (jnp.arange(q.shape[1], dtype=jnp.int32) < counts[:, None])[..., None]
    decay, beta = jnp.where(real, decay, 0.0), jnp.where(real, beta, 0.0)
    first = (starts == 0) & (counts > 0)
    if q.shape[1] == 1:
        y, memory = _decode(q[:, 0], k[:, 0], v[:, 0], decay[:, 0], beta[:, 0], memory, slots, first)
        return y[:, None], memory
    return _prefill(q, k, v, decay, beta, memory, slots, first)


def _decode(
    q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, beta: jax.Array, memory: jax.Array, slots: jax.Array,
    first: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """One token of each sequence."""
    own = jnp.where(first[:, None, None, None], 0.0, memory[slots]) * jnp.exp(decay)[..., None, None]
    correction = (v - (own * k[..., None]).sum(-2)) * beta[..., None]
    own += k[..., None] * correction[..., None, :]
    y = (own * q[..., None]).sum(-2)
    return y, memory.at[slots].set(own, mode="promise_in_bounds")


def _prefill(
    q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, beta: jax.Array, memory: jax.Array, slots: jax.Array,
    first: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    B, Q, N, V = v.shape
    size = min(CHUNK, 1 << (Q - 1).bit_length())
    chunks = -(-Q // size)

    def cut(x: jax.Array) -> jax.Array:  # [B Q N ...] to [M N size ...], M = B * chunks
        x = jnp.pad(x, ((0, 0), (0, chunks * size - Q)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B * chunks, size, *x.shape[2:]), 1, 2)

    q, k, v, decay, beta = map(cut, (q, k, v, decay, beta))
    faded = jnp.cumsum(decay, axis=-1)
    row = jnp.arange(size)
    # what is left at token i of what token j added; the difference of later tokens would overflow
    left = jnp.exp(jnp.where(row[:, None] >= row, faded[..., :, None] - faded[..., None, :], -jnp.inf))
    weighted = k * beta[..., None]
    depends = jnp.where(row[:, None] > row, _einsum("mnik,mnjk->mnij", weighted, k) * left, 0.0)
    inverse = _inverse(depends)
    corrections = _einsum("mnij,mnjv->mniv", inverse, v * beta[..., None])
    reads = _einsum("mnij,mnjk->mnik", inverse, weighted * jnp.exp(faded)[..., None])
    inside = _einsum("mnik,mnjk->mnij", q, k) * left
    end = faded[..., -1:]
    q, k = q * jnp.exp(faded)[..., None], k * jnp.exp(end - faded)[..., None]

    def follow(memory: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        slot, first, q, k, corrections, reads, inside, end = chunk
        own = jnp.where(first, 0.0, memory[slot])
        new = corrections - _einsum("nik,nkv->niv", reads, own)
        y = _einsum("nik,nkv->niv", q, own) + _einsum("nij,njv->niv", inside, new)
        own = own * jnp.exp(end)[..., None] + _einsum("nik,niv->nkv", k, new)
        return memory.at[slot].set(own, mode="promise_in_bounds"), y

    begins = jnp.arange(chunks) == 0
    memory, y = lax.scan(
        follow, memory,
        (jnp.repeat(slots, chunks), (first[:, None] & begins).reshape(-1), q, k, corrections, reads, inside, end),
    )  # fmt: skip
    return jnp.moveaxis(y, 1, 2).reshape(B, chunks * size, N, V)[:, :Q], memory


def _inverse(lower: Float[Array, "*M C C"]) -> Float[Array, "*M C C"]:
    """The inverse of 1 + a strictly lower triangular matrix.

    Inverses of blocks on the diagonal, two of which make one of twice their size. The series of powers would do as few
    products, but its terms grow like binomials where keys are alike, and cancel.
    """
    C = lower.shape[-1]
    row = jnp.arange(C)

    def merge(level: jax.Array, inverse: jax.Array) -> jax.Array:
        block = row >> level
        # what the second of each two blocks has below the first
        below = jnp.where((block[:, None] % 2 == 1) & (block[:, None] - 1 == block), lower, 0.0)
        return inverse - _einsum("...ij,...jk,...kl->...il", inverse, below, inverse)

    return lax.fori_loop(0, (C - 1).bit_length(), merge, jnp.broadcast_to(jnp.eye(C), lower.shape))
