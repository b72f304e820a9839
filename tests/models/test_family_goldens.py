"""Every family against transformers, and its GGUF file against its folder; tests/golden/README.md has the cases.

Logits come through the paged cache in three ways: the prompt in one step, in chunks of several lengths, both as two
blocks, and its second half one token at a time. A GGUF file that llama.cpp's converter wrote must give the same
configuration and the same weights.
"""

import json
from dataclasses import fields
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paged_text import Text

from cvllm_jax import EngineConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.gguf_config import gguf_architectures
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import place_weights
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
#: What other cases compute as well: compiling each takes seconds.
COVERED = {
    "families/deepseek_v2_options", "families/glm4_moe_lite_options",  # deepseek_v3
    "families/glm_moe_dsa_options",  # deepseek_v32
    "families/qwen3_5", "families/qwen3_next_options",  # qwen3_5_moe
    "families/glm4_moe_options", "families/minimax_m2_options",  # qwen2_moe, and deepseek_v3's choice of experts
    "families/qwen3_moe_options", "families/gpt_oss_mxfp4",  # qwen2_moe, and gpt_oss with test_quantized_experts.py
    "families/qwen3_plain", "families/phi_plain", "families/phi3_short", "families/stablelm_sequential",
    "families/olmo2", "families/gemma", "families/llama", "llama/llama_mha_untied", "llama/llama_head_dim",
}  # fmt: skip
LENGTH = 48
CHUNKS = (16, 5, 16, 11)


def load(path):
    engine = EngineConfig(model_path=str(path), device="cpu", dtype="f32")
    with open_checkpoint(path) as checkpoint:
        family = family_for(checkpoint.config)
        config = family.config({**checkpoint.config, "max_sequence_length": LENGTH})
        weights = place_weights(family, config, checkpoint, jnp.float32, mesh_of(jax.devices("cpu")[:1]), engine)
    return config, weights


def core(case):
    """A case whose family, or one with the same layers and more, has more options is for the whole suite."""
    is_covered = f"{case}_options" in CASES or case in COVERED
    return pytest.param(case, marks=pytest.mark.slow if is_covered else ())


@pytest.mark.parametrize("case", [core(case) for case in CASES])
def test_family(case):
    folder = GOLDEN / case
    expected = np.load(folder / "expected.npz")
    longest = f"_{LENGTH}" if f"prompt_{LENGTH}" in expected else ""
    prompt, logits = expected[f"prompt{longest}"], expected[f"logits{longest}"]
    config, weights = load(folder)
    match = partial(np.testing.assert_allclose, atol=1e-4, rtol=0)

    match(Text(config, weights, len(prompt)).add(prompt, len(prompt), cut=len(prompt) // 3), logits)
    text, half = Text(config, weights, len(prompt)), len(prompt) // 2
    for end, count in zip(np.cumsum(CHUNKS), CHUNKS, strict=True):
        chunk = text.add(prompt[end - count : end], len(prompt), cut=count // 3)  # the same program
        match(chunk, logits[end - count : end])
    text = Text(config, weights, len(prompt))
    text.add(prompt[:half], len(prompt))
    for at in range(half, len(prompt)):
        match(text.add(prompt[at : at + 1], 1), logits[at : at + 1])


@pytest.mark.parametrize("case", [case for case in CASES if (GOLDEN / case / "model.gguf").exists()])
def test_gguf_file(case):
    config, weights = load(GOLDEN / case)
    told, stored = load(GOLDEN / case / "model.gguf")
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
    proven = set()
    for path in GOLDEN.glob("*/*/model.gguf"):
        with open_checkpoint(path) as checkpoint:
            proven.add(checkpoint.config["architectures"][0])
    declared = gguf_architectures().values()
    assert proven == {name for each in declared for name in (each.architecture, *each.variants)}


def test_the_documentation_lists_every_architecture():
    listed = (GOLDEN.parents[1] / "docs" / "models.md").read_text()
    assert not [name for family in FAMILIES for name in family.architectures if f"`{name}`" not in listed]
