"""Mixtures of experts beyond the goldens: what is not computed, what is refused, and which kernel is chosen."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cvllm_jax import EngineConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.expert_kernels import ExpertGeometry
from cvllm_jax.engine.kernels import Geometry, choose_kernels
from cvllm_jax.engine.loading import place_weights
from cvllm_jax.errors import ConfigError, ModelLoadError
from cvllm_jax.models.layers import BlockBatch, Kernels
from cvllm_jax.models.layers.moe import Experts, ExpertSizes, Glu, Router
from cvllm_jax.models.registry import family_for

HOPPER = SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="NVIDIA H100 80GB HBM3")
BF16 = {"page_size": 16, "dtype": jnp.bfloat16, "cache_dtype": jnp.bfloat16}


def batch(counts, queries):
    zeros = jnp.zeros(len(counts) * queries, jnp.int32)
    return BlockBatch(
        positions=zeros, page=zeros, offset=zeros, tables=jnp.zeros((len(counts), 1), jnp.int32),
        starts=jnp.zeros(len(counts), jnp.int32), counts=jnp.asarray(counts, jnp.int32),
    )  # fmt: skip


def test_only_the_chosen_experts_are_computed_and_padding_chooses_none():
    layer = Experts(ExpertSizes(6, 8, 2), 4, dtype=jnp.float32, activation=Glu("silu"))
    generator = np.random.default_rng(0)
    gate_up, down = generator.normal(size=(6, 16, 4)), generator.normal(size=(6, 4, 8))
    gate_up[[0, 4]] = np.nan  # nobody's, and those of padding
    layer.gate_up.weight[...], layer.down.weight[...] = jnp.asarray(gate_up), jnp.asarray(down)
    x, weights = generator.normal(size=(4, 4)), np.asarray([[0.75, 0.25]] * 4)
    x[2] = np.nan
    experts = np.asarray([[1, 5], [3, 1], [0, 4], [2, 3]])
    y = layer(*(jnp.asarray(a, jnp.float32) for a in (x, weights)), jnp.asarray(experts), batch([1, 1, 0, 1], 1))
    for row in (0, 1, 3):
        gate, up = np.split(gate_up[experts[row]] @ x[row], 2, axis=1)
        each = np.einsum("koi,ki->ko", down[experts[row]], gate / (1 + np.exp(-gate)) * up)
        np.testing.assert_allclose(y[row], weights[row] @ each, atol=1e-5)
    assert not np.isnan(y[2]).any()


def test_routing_is_in_f32_whatever_the_model_computes_in():
    router = Router(2, 4, 1)
    router.weight[...] = jnp.asarray([[1.0, 0.0], [1.0, 1e-3], [0.0, 0.0], [0.0, 0.0]])  # alike in bf16
    _, experts = router(jnp.asarray([[4.0, 1.0], [4.0, -1.0]], jnp.bfloat16))
    assert experts.tolist() == [[1], [0]]


def test_the_kernel_for_experts_is_chosen_as_the_others_are():
    heads = {"heads": 32, "kv_heads": 8, "head_dim": 128, **BF16}
    fits = Geometry(**heads, experts=ExpertGeometry(2048, 128, 768, 8))
    assert choose_kernels(fits, HOPPER, trial=False).kernels == Kernels("hopper", "hopper", "hopper")
    assert choose_kernels(fits, jax.devices()[0]).kernels.experts == "xla"
    odd = Geometry(**heads, experts=ExpertGeometry(2048, 60, 1408 - 32, 4))
    choices = choose_kernels(odd, HOPPER, trial=False)
    assert choices.kernels == Kernels("hopper", "hopper", "xla") and "multiples of 64" in choices.experts.reason
    with pytest.raises(ConfigError, match=r"the Hopper kernel for experts cannot run: .* multiples of 64"):
        choose_kernels(odd, HOPPER, "hopper", trial=False)
    latent = Geometry(heads=128, kv_heads=1, head_dim=576, shares_values=True, **BF16)
    with pytest.raises(ConfigError, match="there is no kernel for latent attention yet"):
        choose_kernels(latent, HOPPER, "hopper", trial=False)


@pytest.mark.parametrize(("case", "changes", "message"), [
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, of 5 experts"),
    ("qwen3_moe", {"mlp_only_layers": [True]}, "mlp_only_layers must be a list of layers' numbers"),
    ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu' is"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not supported"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob=True is not supported"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
    ("deepseek_v3", {"n_group": 3}, "3 of 8 experts cannot be chosen from 2 of 3 groups"),
    ("deepseek_v3", {"topk_group": 1}, "3 of 8 experts cannot be chosen from 1 of 4 groups"),
    ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse"]}, "mlp_layer_types must be a list of 3 times"),
    ("minimax_m2", {"attn_type_list": [1, 0]}, r"attn_type_list=\[1, 0\] is not supported"),
    ("deepseek_v32", {"q_lora_rank": None}, "q_lora_rank is null"),
    ("deepseek_v32", {"indexer_types": ["full"] * 3}, "indexer_types=.* is not supported"),
    ("glm_moe_dsa", {"indexer_types": ["shared"] * 4}, "the first layer has no indexer"),
    ("glm_moe_dsa", {"indexer_types": ["full"] * 3}, "indexer_types must be a list of 4 times"),
])  # fmt: skip
def test_configurations_that_are_refused(case, changes, message, pytestconfig):
    path = pytestconfig.rootpath / "tests" / "golden" / "families" / case / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    with pytest.raises(ModelLoadError, match=message):
        family_for(config).config(config)


def test_layers_of_deepseek_v3_that_predict_further_tokens_are_left_alone(tmp_path, pytestconfig):
    folder = pytestconfig.rootpath / "tests" / "golden" / "families" / "deepseek_v3"
    tensors = load_file(folder / "model.safetensors")
    last = {name.replace(".2.", ".3.", 1): tensor for name, tensor in tensors.items() if ".layers.2." in name}
    further = {f"model.layers.3.{name}.weight": np.ones(4, np.float32) for name in ("enorm", "shared_head.norm")}
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    config = EngineConfig(model_path=str(tmp_path), device="cpu", dtype="f32")

    def load():
        with open_checkpoint(tmp_path) as checkpoint:
            family = family_for(checkpoint.config)
            sizes = family.config(checkpoint.config)
            return place_weights(family, sizes, checkpoint, jnp.float32, mesh_of(jax.devices("cpu")[:1]), config)

    save_file({**tensors, **last, **further}, tmp_path / "model.safetensors")
    assert len(load().leaves) == len(jax.tree.leaves(nnx.state(model_of(folder), nnx.Param)))
    ninth = {"model.layers.2.mlp.experts.8.up_proj.weight": np.ones((16, 32), np.float32)}
    save_file({**tensors, **last, **ninth}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"1 unexpected \(model\.layers\.2\.mlp\.experts\.8"):
        load()


def model_of(folder):
    config = json.loads((folder / "config.json").read_text())
    family = family_for(config)
    return nnx.eval_shape(lambda: family.module(family.config(config), jnp.float32))
