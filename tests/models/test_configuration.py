"""What a checkpoint's configuration is read into, and what is refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cvllm_jax import EngineConfig, InferenceEngine
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.errors import ModelLoadError
from cvllm_jax.models.llama import LlamaConfig
from cvllm_jax.models.mistral import MistralConfig
from cvllm_jax.models.registry import family_for

CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip


def read(**changes):
    return LlamaConfig.from_dict({**CONFIG, **changes})


def test_defaults_are_those_of_the_format():
    config = read()
    assert (config.num_key_value_heads, config.head_dim, config.windows) == (4, 8, (None, None))
    assert (config.tie_embeddings, config.attention_bias, config.mlp_bias) == (False, False, False)
    assert config.norm_eps == 1e-6


def test_null_means_absent():
    assert read(num_key_value_heads=None, head_dim=None, sliding_window=None, attention_bias=None) == read()


@pytest.mark.parametrize(("changes", "message"), [
    ({"vocab_size": None}, "vocab_size is missing"),
    ({"hidden_size": "32"}, "hidden_size must be a whole number from 1 to .*, not '32'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers must be a whole number from 1 to 1024"),
    ({"intermediate_size": 2**40}, "intermediate_size must be"),
    ({"max_position_embeddings": -5}, "max_position_embeddings must be"),
    ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is no multiple of num_key_value_heads \(3\)"),
    ({"head_dim": 7}, "head_dim must be even, not 7"),
    ({"hidden_act": "mish"}, "hidden_act='mish' is not supported; gelu, gelu_new, .*silu are"),
    ({"pretraining_tp": 2}, "pretraining_tp=2 is not supported"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number, not 'small'"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, not 'yes'"),
    ({"sliding_window": -1}, "sliding_window must be"),
    ({"sliding_window": "wide"}, "sliding_window must be"),
    ({"max_position_embeddings": None, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is incomplete"),
])  # fmt: skip
def test_values_that_are_refused(changes, message):
    with pytest.raises(ModelLoadError, match=message):
        read(**changes)


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None, "LlamaForCausalLM", [7]])
def test_an_unknown_architecture_is_refused_with_those_that_are_supported(architectures):
    with pytest.raises(ModelLoadError, match=r"is not supported; supported are LlamaForCausalLM, .*MistralForCausalLM"):
        family_for({"architectures": architectures})


@pytest.mark.parametrize(("name", "value", "message"), [
    ("architectures", ["GPT2LMHeadModel"], "architecture 'GPT2LMHeadModel' is not supported"),
    ("hidden_act", "mish", "hidden_act='mish' is not supported"),
    ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported"),
    ("rope_scaling", "linear", "rope_scaling must be an object"),
    ("num_key_value_heads", 3, "is no multiple of"),
    ("hidden_size", 64, "misshapen|shape"),
    ("attention_bias", True, "missing"),
])  # fmt: skip
def test_an_engine_refuses_the_folder(name, value, message, tiny_model_path, tmp_path):
    for file in tiny_model_path.iterdir():
        if file.name not in ("config.json", "expected.npz"):
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((tiny_model_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(ModelLoadError, match=message):
        InferenceEngine.new_sync(EngineConfig(model_path=str(tmp_path), device="cpu", dtype="f32"))


def test_a_folder_without_architectures_goes_by_its_model_type():
    assert family_for({"model_type": "mistral"}).name == "mistral"
    with pytest.raises(ModelLoadError, match="'gpt2' is not supported; supported are Llama"):
        family_for({"model_type": "gpt2"})
    with pytest.raises(ModelLoadError, match="'GPT2LMHeadModel' is not supported"):
        family_for({"architectures": ["GPT2LMHeadModel"], "model_type": "llama"})


def test_what_mistral_leaves_out_is_what_its_class_means():
    config = MistralConfig.from_dict({**CONFIG, "num_attention_heads": 8})
    assert (config.num_key_value_heads, config.windows) == (8, (4096, 4096))
    assert MistralConfig.from_dict({**CONFIG, "num_key_value_heads": 2, "sliding_window": None}).windows == (None, None)


def test_the_language_model_of_a_folder_that_reads_images(tmp_path, pytestconfig):
    """Its configuration is nested, its tensors have a prefix, and what encodes images is left alone."""
    folder = pytestconfig.rootpath / "tests" / "golden" / "families" / "gemma3_options"
    inner, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    text = {key: value for key, value in inner.items() if key not in ("architectures", "torch_dtype")}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
             "vision_config": {"hidden_size": 8}, "text_config": {**text, "num_attention_heads": 4}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(outer))
    for prefix in ("language_model.model.", "model.language_model."):
        renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        image = {"vision_tower.patches.weight": np.ones((2, 2), np.float32)}
        save_file({**renamed, **image}, tmp_path / "model.safetensors")
        with open_checkpoint(tmp_path) as checkpoint, open_checkpoint(folder) as alone:
            assert checkpoint.config["architectures"] == ["Gemma3ForCausalLM"]
            assert checkpoint.eos_token_ids == (1, 106)
            assert checkpoint.tensors == alone.tensors
            family = family_for(checkpoint.config)
            assert family.config(checkpoint.config) == family.config(alone.config)
            for name in alone.tensors:
                np.testing.assert_array_equal(checkpoint.read(name), alone.read(name))
    for broken, message in (({}, "needs a text_config"), ({"model_type": "gemma4"}, "the type 'gemma4' is not")):
        (tmp_path / "config.json").write_text(json.dumps({**outer, "text_config": broken or None}))
        with pytest.raises(ModelLoadError, match=message):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("case", "name", "prefix", "image"),
    [
        ("llama4_options", "Llama4", "language_model.model.", "vision_model.class_embedding"),
        ("gemma4", "Gemma4", "model.language_model.", "model.audio_tower.output_proj.weight"),
        ("qwen3_5_moe", "Qwen3_5Moe", "model.language_model.", "model.visual.pos_embed.weight"),
    ],
)
def test_language_models_of_other_folders(case, name, prefix, image, tmp_path, pytestconfig):
    folder = pytestconfig.rootpath / "tests" / "golden" / "families" / case
    inner, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    outer = {"architectures": [f"{name}ForConditionalGeneration"], "text_config": {**inner, "architectures": None}}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file({**renamed, image: np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, open_checkpoint(folder) as alone:
        assert checkpoint.config["architectures"] == [f"{name}ForCausalLM"]
        assert checkpoint.tensors == alone.tensors
        family = family_for(checkpoint.config)
        assert family.config(checkpoint.config) == family.config(alone.config)


@pytest.mark.parametrize(("architecture", "changes", "message"), [
    ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window must be a whole number"),
    ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers must be"),
    ("Qwen3ForCausalLM", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "a list of 2 kinds"),
    ("Qwen3_5ForCausalLM", {"layer_types": ["linear_attention"] * 2}, "2 layers without one of full_attention"),
    ("Qwen3_5ForCausalLM", {"layer_types": ["full_attention", "mamba"]}, "linear_attention and full_attention are"),
    ("Qwen3NextForCausalLM", {"linear_num_value_heads": 5}, "is no multiple of linear_num_key_heads"),
    ("Qwen3NextForCausalLM", {"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim must be"),
    ("Qwen3ForCausalLM", {"use_sliding_window": True, "layer_types": ["linear"] * 2}, "type 'linear' are not"),
    ("GemmaForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
    ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
    ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be more than 0"),
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping must be more than 0"),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
    ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
    ("Gemma3ForCausalLM", {"rope_parameters": {"rope_theta": 1.0}}, "with full_attention and sliding_attention"),
    ("Phi3ForCausalLM", {"rope_scaling": {"type": "yarn"}}, "'yarn' is not supported; supported are default, longrope"),
    ("PhiForCausalLM", {"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported"),
    ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "no_rope_layers must be a list of 0 and 1 for 2 layers"),
    ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 0}, "no_rope_layer_interval must be"),
    ("GraniteForCausalLM", {"logits_scaling": 0}, "logits_scaling must be more than 0"),
    ("Olmo2ForCausalLM", {"sliding_window": 4096}, "sliding_window=4096 is not supported"),
    ("Starcoder2ForCausalLM", {"use_bias": 1}, "use_bias must be true or false"),
    ("StableLmForCausalLM", {"partial_rotary_factor": 2.0}, "partial_rotary_factor must rotate an even number"),
    ("Glm4ForCausalLM", {"hidden_act": "swiglu"}, "hidden_act='swiglu' is not supported"),
    ("GlmForCausalLM", {"partial_rotary_factor": 2.0}, "partial_rotary_factor must rotate an even number"),
    ("Gemma3TextModel", {"is_causal": False}, "is_causal=False is not supported"),
    ("Qwen3Model", {"is_causal": 0}, "is_causal must be true or false"),
    ("Gemma4ForCausalLM", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all' is not supported"),
    ("Gemma4ForCausalLM", {"per_layer_config": {"1": {"head_dim": 4}}}, "per_layer_config={.* is not supported"),
    ("Gemma4ForCausalLM", {"num_kv_shared_layers": 2}, "leaves no layer of the kind full_attention"),
    ("Gemma4ForCausalLM", {"vocab_size_per_layer_input": 1}, "vocab_size_per_layer_input is less than vocab_size"),
    ("Gemma4ForCausalLM", {"attention_k_eq_v": True, "num_global_key_value_heads": 3}, "num_global_key_value_heads"),
    ("Gemma4ForCausalLM", {"rope_parameters": {"rope_theta": 1.0}}, "with full_attention and sliding_attention"),
    ("Gemma4ForCausalLM", {"enable_moe_block": True}, "num_experts is missing"),
    ("Llama4ForCausalLM", {"layer_types": ["sliding_attention"] * 2}, "must name chunked_attention or full_attention"),
    ("Llama4ForCausalLM", {"moe_layers": [2]}, "moe_layers must be numbers of 2 layers"),
    ("Llama4ForCausalLM", {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "'yarn' is not supported"),
    ("Llama4ForCausalLM", {"attention_chunk_size": 0}, "attention_chunk_size must be a whole number"),
])  # fmt: skip
def test_options_that_a_family_does_not_have(architecture, changes, message):
    config = {**CONFIG, "architectures": [architecture], "num_key_value_heads": 2, "head_dim": 8,
              "full_attention_interval": 2}  # fmt: skip
    family_for(config).config(config)
    with pytest.raises(ModelLoadError, match=message):
        family_for(config).config({**config, **changes})
