"""Every family against transformers, and its GGUF file against its folder; tests/golden/README.md has the cases.

Logits come through the paged cache in three ways: the prompt whole, in chunks of several lengths, and its second half
one token at a time. A GGUF file that llama.cpp's converter wrote must give the same configuration and the same weights.
"""

import json
from dataclasses import fields
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cvllm_jax import EngineConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.gguf_config import gguf_architectures
from cvllm_jax.engine.devices import geometry_of, mesh_of
from cvllm_jax.engine.kernels import empty_pages
from cvllm_jax.engine.loading import place_weights
from cvllm_jax.models.layers import BlockBatch
from cvllm_jax.models.registry import FAMILIES, family_for

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(f"{path.parts[-3]}/{path.parts[-2]}" for path in GOLDEN.glob("*/*/expected.npz"))
#: By case, the fields of the configuration that its GGUF file cannot say.
UNSAID = {
    "families/qwen2": {"activation", "windows"},
    "families/phi3": {"activation"},
    "families/mixtral": {"windows"},
    "families/starcoder2": {"windows"},
}
LENGTH = 48
PAGE_SIZE = 8
CHUNKS = (16, 5, 16, 11)


def load(path):
    engine = EngineConfig(model_path=str(path), device="cpu", dtype="f32")
    with open_checkpoint(path) as checkpoint:
        family = family_for(checkpoint.config)
        config = family.config({**checkpoint.config, "max_sequence_length": LENGTH})
        weights = place_weights(family, config, checkpoint, jnp.float32, mesh_of(jax.devices("cpu")[:1]), engine)
    return config, weights


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
        self.cache = tuple(empty_pages(geometry, pages + 1) for _ in range(config.num_layers))
        rng = np.random.default_rng(0)
        self.tables = [1 + rng.permutation(pages).astype(np.int32) for _ in config.cache_groups]
        self.length = 0

    def add(self, tokens, block):
        """Logits after each of these tokens, which fill a block of ``block`` in part."""
        count = len(tokens)
        real = np.arange(block) < count
        positions = np.where(real, self.length + np.arange(block), 0).astype(np.int32)
        batches = tuple(
            BlockBatch(
                positions=jnp.asarray(positions),
                page=jnp.asarray(np.where(real, table[positions // PAGE_SIZE], 0)),
                offset=jnp.asarray(positions % PAGE_SIZE),
                tables=jnp.asarray(table[None]),
                starts=jnp.asarray([self.length], jnp.int32),
                counts=jnp.asarray([count], jnp.int32),
            )
            for table in self.tables
        )
        padded = jnp.asarray(np.pad(tokens, (0, block - count)))
        logits, self.cache = step(*self.weights[:2], self.weights.leaves, self.cache, padded, batches)
        self.length += count
        return np.asarray(logits[:count])


@pytest.mark.parametrize("case", CASES)
def test_family(case):
    folder = GOLDEN / case
    expected = np.load(folder / "expected.npz")
    longest = f"_{LENGTH}" if f"prompt_{LENGTH}" in expected else ""
    prompt, logits = expected[f"prompt{longest}"], expected[f"logits{longest}"]
    config, weights = load(folder)
    match = partial(np.testing.assert_allclose, atol=1e-4, rtol=0)

    match(Text(config, weights, len(prompt)).add(prompt, len(prompt)), logits)
    text, half = Text(config, weights, len(prompt)), len(prompt) // 2
    for end, count in zip(np.cumsum(CHUNKS), CHUNKS, strict=True):
        match(text.add(prompt[end - count : end], len(prompt)), logits[end - count : end])  # the same program
    text.length = half  # what comes after is written once more
    for at in range(half, len(prompt)):
        match(text.add(prompt[at : at + 1], 1), logits[at : at + 1])

    if (folder / "model.gguf").exists():
        told, stored = load(folder / "model.gguf")
        for field in fields(config):
            if field.name not in UNSAID.get(case, ()):
                assert getattr(told, field.name) == getattr(config, field.name), field.name
        for ours, theirs in zip(weights.leaves, stored.leaves, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_no_family_is_without_a_golden():
    folders = [path.parent for path in GOLDEN.glob("*/*/config.json")]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    proven = {family_for(config).name for config in configs if "architectures" in config}
    assert proven == {family.name for family in FAMILIES}


def test_no_gguf_architecture_is_without_a_golden():
    files = [path.with_name("config.json") for path in GOLDEN.glob("*/*/model.gguf")]
    proven = {json.loads(path.read_text())["architectures"][0] for path in files}
    declared = gguf_architectures().values()
    assert proven == {name for each in declared for name in (each.architecture, *each.variants)}


def test_the_documentation_lists_every_architecture():
    listed = (GOLDEN.parents[1] / "docs" / "models.md").read_text()
    assert not [name for family in FAMILIES for name in family.architectures if f"`{name}`" not in listed]
