"""A model's logits through the paged cache, without an engine."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cvllm_jax import EngineConfig
from cvllm_jax.engine.devices import geometry_of
from cvllm_jax.engine.layer_caches import empty_caches
from cvllm_jax.models.layers import BlockBatch

PAGE_SIZE = 8


# unoptimised code takes half as long to compile
@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3, compiler_options={"xla_backend_optimization_level": 0})
def step(graph, treedef, leaves, cache, tokens, batches):
    model = nnx.merge(graph, jax.tree.unflatten(treedef, leaves))
    hidden, cache = model(tokens, cache, batches)
    return model.logits(hidden), cache


class Text:
    """One sequence in the paged cache."""

    def __init__(self, config, weights, length):
        self.weights = weights
        pages = -(-length // PAGE_SIZE)
        geometry = geometry_of(EngineConfig(model_path="-", page_size=PAGE_SIZE), config, jnp.float32)
        self.cache = empty_caches(config, geometry, [pages + 1] * len(config.cache_groups), slots=1)
        rng = np.random.default_rng(0)
        self.tables = [1 + rng.permutation(pages).astype(np.int32) for _ in config.cache_groups]
        self.length = 0

    def add(self, tokens, block, cut=None):
        """Logits after each of these tokens, which fill a block of ``block`` in part, or two without a gap.

        Arguments:
          cut: where the second block begins.
        """
        count = len(tokens)
        real = np.arange(block) < count
        starts, counts, between = [self.length], [count], {}
        if cut is not None:
            starts, counts, between = [self.length, self.length + cut], [cut, count - cut], _two_blocks(block, cut)
        positions = np.where(real, self.length + np.arange(block), 0).astype(np.int32)
        batches = tuple(
            BlockBatch(
                positions=jnp.asarray(positions),
                page=jnp.asarray(np.where(real, table[positions // PAGE_SIZE], 0)),
                offset=jnp.asarray(positions % PAGE_SIZE),
                tables=jnp.asarray(np.stack([table] * len(starts))),
                starts=jnp.asarray(starts, jnp.int32),
                counts=jnp.asarray(counts, jnp.int32),
                slots=jnp.zeros(len(starts), jnp.int32),
                **between,
            )
            for table in self.tables
        )
        padded = jnp.asarray(np.pad(tokens, (0, block - count)))
        logits, self.cache = step(*self.weights[:2], self.weights.leaves, self.cache, padded, batches)
        self.length += count
        return np.asarray(logits[:count])


def _two_blocks(length, cut):
    """Blocks of ``length`` queries each that share as many tokens."""
    token, first = np.arange(length, dtype=np.int32), np.asarray([[0], [cut]], np.int32)
    rows = np.minimum(first + token, length - 1)
    places = np.where(token < cut, token, length + token - cut)
    return {"rows": jnp.asarray(rows), "places": jnp.asarray(places)}
