"""Writes tests/golden/families/: tiny random checkpoints of every family and what transformers computes.

    python tests/golden/make_families.py LLAMA_CPP [CASE ...]

Run in the reference environment (README.md in this folder). ``LLAMA_CPP`` is a folder of llama.cpp with its
``conversion`` package, which writes the GGUF files.

Each case is a Hugging Face folder with ``expected.npz`` beside the weights: ``prompt`` [48], and ``logits`` [48, V] of
a float32 forward pass over the stored weights. ``model.gguf`` holds the same weights where llama.cpp knows the family.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

HERE = Path(__file__).parent
LENGTH = 48


@dataclass(frozen=True, kw_only=True)
class Case:
    config: dict[str, Any]
    """What differs from BASE; None leaves a key out, ... stands for null. Each option here must change the logits."""
    silent: tuple[str, ...] = ()
    """Keys of ``config`` that do not have to."""
    gains_less_one: bool = False
    """Whether gains of norms are stored as their distance from 1."""
    gguf: bool = True


BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 2**-10,  # this and other numbers are exact in float32, as GGUF files have them
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
DEEPSEEK_V3 = {
    "num_hidden_layers": 3,
    **LATENT,
    "rope_theta": 1024.0,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
CASES = {
    "qwen2": Case(
        config={
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "relu",
            "rope_theta": 1024.0,
            "rope_scaling": YARN,
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 1,
        }
    ),
    "qwen3": Case(
        config={
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 16,
            "rope_theta": 1024.0,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        gguf=False,  # llama.cpp has no biases for it
    ),
    "qwen3_plain": Case(
        config={
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 16,
            "rope_theta": 1024.0,
        }
    ),
    "gemma": Case(
        config={
            "architectures": ["GemmaForCausalLM"],
            "model_type": "gemma",
            "head_dim": 16,
            "hidden_act": "gelu",
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        silent=("hidden_act", "tie_word_embeddings"),
        gains_less_one=True,
    ),
    "gemma2": Case(
        config={
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 12,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
        },
        silent=("tie_word_embeddings",),
        gains_less_one=True,
    ),
    "gemma2_options": Case(
        config={
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "head_dim": 16,
            "query_pre_attn_scalar": 5,
            "hidden_activation": "silu",
            "attention_bias": True,
            "sliding_window": 12,
            "layer_types": ["full_attention", "sliding_attention"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_theta": 1024.0,
            "tie_word_embeddings": True,
        },
        silent=("tie_word_embeddings", "attn_logit_softcapping", "final_logit_softcapping"),
        gains_less_one=True,
        gguf=False,
    ),
    "gemma3": Case(
        config={
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "num_hidden_layers": 6,
            "hidden_size": 16,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 12,
            "final_logit_softcapping": 4.0,
            "rope_theta": 4096.0,
            "rope_local_base_freq": 64.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "tie_word_embeddings": True,
        },
        silent=("tie_word_embeddings",),
        gains_less_one=True,
    ),
    "gemma3_options": Case(
        config={
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "head_dim": 16,
            "query_pre_attn_scalar": 5,
            "hidden_activation": "silu",
            "attention_bias": True,
            "sliding_window": 12,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_theta": 4096.0, "rope_type": "linear", "factor": 2.0},
                "sliding_attention": {"rope_theta": 64.0, "rope_type": "default"},
            },
            "tie_word_embeddings": True,
        },
        silent=("tie_word_embeddings",),
        gains_less_one=True,
        gguf=False,
    ),
    "phi3": Case(
        config={
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "hidden_act": "relu",
            "rope_theta": 1024.0,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 512,  # with 16 the scale of scores is 1.5
            "original_max_position_embeddings": 16,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.25, 1.5, 2.0, 2.5, 3.0],
                "long_factor": [1.0, 2.0, 4.0, 5.0, 6.0, 8.0],
            },
            "sliding_window": 20,
        },
        silent=("original_max_position_embeddings",),
    ),
    "phi3_short": Case(
        config={
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0, 1.25, 1.5, 2.0],
                "long_factor": [1.0, 2.0, 4.0, 5.0],
            },
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "smollm3": Case(
        config={
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "num_hidden_layers": 4,
            "hidden_size": 16,
            "rope_theta": 64.0,
            "tie_word_embeddings": True,
        },
        silent=("tie_word_embeddings",),
    ),
    "smollm3_options": Case(
        config={
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "hidden_act": "relu",
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        gguf=False,
    ),
    "granite": Case(
        config={
            "architectures": ["GraniteForCausalLM"],
            "model_type": "granite",
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.375,
            "logits_scaling": 0.5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": Case(
        config={
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "rope_theta": 1024.0,
            "rope_scaling": {**YARN, "attention_factor": 1.25, "beta_fast": 8.0, "beta_slow": 0.5},
        },
    ),
    "olmo2_bias": Case(
        config={
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "hidden_act": "gelu",
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "starcoder2": Case(
        config={
            "architectures": ["Starcoder2ForCausalLM"],
            "model_type": "starcoder2",
            "norm_epsilon": 2**-10,
            "rms_norm_eps": None,
            "sliding_window": 12,
            "rope_theta": 1024.0,
            "tie_word_embeddings": True,
        },
        silent=("tie_word_embeddings", "norm_epsilon"),
    ),
    "starcoder2_options": Case(
        config={
            "architectures": ["Starcoder2ForCausalLM"],
            "model_type": "starcoder2",
            "norm_epsilon": 0.125,
            "rms_norm_eps": None,
            "hidden_act": "gelu",
            "use_bias": False,
        },
        silent=("hidden_act",),  # close to its approximation
        gguf=False,
    ),
    "stablelm": Case(
        config={
            "architectures": ["StableLmForCausalLM"],
            "model_type": "stablelm",
            "layer_norm_eps": 2**-4,
            "rms_norm_eps": None,
            "partial_rotary_factor": 0.5,
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "rope_theta": 64.0,
        },
        gguf=False,  # llama.cpp's converter loses the norms of heads
    ),
    "stablelm_sequential": Case(
        config={
            "architectures": ["StableLmForCausalLM"],
            "model_type": "stablelm",
            "layer_norm_eps": 2**-10,
            "rms_norm_eps": None,
            "tie_word_embeddings": True,
        },
        silent=("layer_norm_eps",),
    ),
    "phi": Case(
        config={
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            "layer_norm_eps": 2**-4,
            "rms_norm_eps": None,
            "hidden_act": "relu",
            "partial_rotary_factor": 0.25,
            "qk_layernorm": True,
        },
        gguf=False,
    ),
    "phi_plain": Case(
        config={
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            "num_key_value_heads": 4,
            "intermediate_size": 128,
            "layer_norm_eps": 2**-10,
            "rms_norm_eps": None,
            "rope_theta": 10000.0,
        },
        silent=("num_key_value_heads", "intermediate_size", "layer_norm_eps", "rope_theta"),
    ),
    "glm4": Case(
        config={
            "architectures": ["Glm4ForCausalLM"],
            "model_type": "glm4",
            "head_dim": 16,
            "partial_rotary_factor": 0.25,
            "rope_theta": 64.0,
            "attention_bias": True,
        },
        silent=("attention_bias",),
    ),
    "glm4_options": Case(
        config={
            "architectures": ["Glm4ForCausalLM"],
            "model_type": "glm4",
            "head_dim": 16,
            "hidden_act": "relu",
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "llama": Case(
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "head_dim": 16,
            "rope_theta": 1024.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "attention_bias": True,
        },
    ),
    "mixtral": Case(
        config={
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "head_dim": 16,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 12,
            "rope_theta": 1024.0,
            "rope_scaling": YARN,
            "tie_word_embeddings": True,
        },
    ),
    "mixtral_options": Case(
        config={
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_act": "relu",
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
        },
        gguf=False,
    ),
    "qwen3_moe": Case(
        config={
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": 16,
            "hidden_act": "silu",
            "rope_theta": 1024.0,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
        silent=("hidden_act",),
    ),
    "qwen3_moe_options": Case(
        config={
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_hidden_layers": 4,
            "hidden_act": "relu",
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 12,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "tie_word_embeddings": True,
        },
        silent=("norm_topk_prob",),
        gguf=False,
    ),
    "qwen2_moe": Case(
        config={
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "rope_theta": 1024.0,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "qwen2_moe_options": Case(
        config={
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "num_hidden_layers": 4,
            "hidden_act": "relu",
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "gpt_oss": Case(
        config={
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "num_hidden_layers": 3,
            "head_dim": 16,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 12,
            "rope_theta": 1024.0,
            "rope_scaling": {**YARN, "truncate": False},
            "attention_bias": True,
        },
        silent=("attention_bias",),
    ),
    "gpt_oss_options": Case(
        config={
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "swiglu_alpha": 0.75,
            "swiglu_limit": 0.5,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "gpt_oss_mxfp4": Case(
        config={
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "head_dim": 16,
            "intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 12,
            "quantization_config": {"quant_method": "mxfp4"},
        },
        silent=("quantization_config",),
    ),
    "deepseek_v2": Case(
        config={
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "num_hidden_layers": 3,
            **LATENT,
            "rope_theta": 1024.0,
            "rope_scaling": {**YARN, "mscale": 0.5, "mscale_all_dim": 0.5},
            "first_k_dense_replace": 1,
            "n_routed_experts": 6,
            "n_shared_experts": 3,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "routed_scaling_factor": 2.0,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
        },
        silent=("num_key_value_heads",),
    ),
    "deepseek_v2_options": Case(
        config={
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            **LATENT,
            "q_lora_rank": ...,
            "rope_theta": 1024.0,
            "rope_scaling": {**YARN, "mscale": 0.75, "mscale_all_dim": 0.25},
            "hidden_act": "relu",
            "attention_bias": True,
            "mlp_bias": True,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "tie_word_embeddings": True,
        },
        silent=("num_key_value_heads",),
        gguf=False,
    ),
    "deepseek_v3": Case(
        config={
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **DEEPSEEK_V3,
        },
        silent=("num_key_value_heads", "norm_topk_prob", "scoring_func", "topk_method"),
    ),
    "deepseek_v3_options": Case(
        config={
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **LATENT,
            "q_lora_rank": ...,
            "rope_interleave": False,
            "hidden_act": "relu",
            "attention_bias": True,
            "first_k_dense_replace": 0,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
        silent=("num_key_value_heads",),
        gguf=False,
    ),
    "minimax_m2": Case(
        config={
            "architectures": ["MiniMaxM2ForCausalLM"],
            "model_type": "minimax_m2",
            "head_dim": 16,
            "rotary_dim": 8,
            "rope_theta": 1024.0,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "scoring_func": "sigmoid",
        },
        silent=("scoring_func",),
    ),
    "minimax_m2_options": Case(
        config={
            "architectures": ["MiniMaxM2ForCausalLM"],
            "model_type": "minimax_m2",
            "hidden_act": "relu",
            "head_dim": 12,
            "rope_parameters": {**YARN, "rope_theta": 1024.0, "partial_rotary_factor": 0.5},
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "glm4_moe": Case(
        config={
            "architectures": ["Glm4MoeForCausalLM"],
            "model_type": "glm4_moe",
            "num_hidden_layers": 3,
            "head_dim": 16,
            "rope_theta": 1024.0,
            "use_qk_norm": True,
            "attention_bias": True,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 2,
            "num_nextn_predict_layers": 1,
        },
        silent=("num_nextn_predict_layers",),
    ),
    "glm4_moe_options": Case(
        config={
            "architectures": ["Glm4MoeForCausalLM"],
            "model_type": "glm4_moe",
            "hidden_act": "relu",
            "rope_parameters": {**YARN, "rope_theta": 1024.0, "partial_rotary_factor": 0.75},
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": False,
            "first_k_dense_replace": 0,
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "glm4_moe_lite": Case(
        config={
            "architectures": ["Glm4MoeLiteForCausalLM"],
            "model_type": "glm4_moe_lite",
            "num_hidden_layers": 3,
            **LATENT,
            "rope_theta": 1024.0,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "first_k_dense_replace": 1,
            "num_nextn_predict_layers": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
        silent=(
            "num_key_value_heads", "norm_topk_prob", "first_k_dense_replace", "num_nextn_predict_layers",
            "scoring_func", "topk_method",
        ),
    ),
    "glm4_moe_lite_options": Case(
        config={
            "architectures": ["Glm4MoeLiteForCausalLM"],
            "model_type": "glm4_moe_lite",
            **LATENT,
            "q_lora_rank": ...,
            "rope_parameters": {**YARN, "rope_theta": 1024.0, "mscale": 0.75, "mscale_all_dim": 0.25},
            "rope_interleave": False,
            "hidden_act": "relu",
            "attention_bias": True,
            "mlp_layer_types": ["sparse", "dense"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
        silent=("num_key_value_heads",),
        gguf=False,
    ),
    "deepseek_v32": Case(
        config={
            "architectures": ["DeepseekV32ForCausalLM"],
            "model_type": "deepseek_v32",
            **DEEPSEEK_V3,
            "index_topk": 7,
            "index_head_dim": 12,
            "index_n_heads": 12,  # enough for no two tokens to score alike, where the reference leaves the choice open
            "num_nextn_predict_layers": 1,
        },
        silent=(
            "num_key_value_heads", "norm_topk_prob", "scoring_func", "topk_method", "num_nextn_predict_layers",
        ),
    ),
    "deepseek_v32_options": Case(
        config={
            "architectures": ["DeepseekV32ForCausalLM"],
            "model_type": "deepseek_v32",
            **LATENT,
            "rope_theta": 1024.0,
            "hidden_act": "relu",
            "attention_bias": True,
            "mlp_layer_types": ["sparse", "dense"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "index_topk": 12,
            "index_head_dim": 4,
            "index_n_heads": 8,
            "tie_word_embeddings": True,
        },
        silent=("num_key_value_heads",),
        gguf=False,
    ),
    "glm_moe_dsa": Case(
        config={
            "architectures": ["GlmMoeDsaForCausalLM"],
            "model_type": "glm_moe_dsa",
            "num_hidden_layers": 4,
            **LATENT,
            "rope_theta": 1024.0,
            "first_k_dense_replace": 2,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "index_topk": 7,
            "index_head_dim": 12,
            "index_n_heads": 12,  # enough for no two tokens to score alike, where the reference leaves the choice open
            "indexer_types": ["full", "shared", "full", "shared"],
        },
        silent=("num_key_value_heads", "norm_topk_prob", "scoring_func", "n_shared_experts"),
    ),
    "glm_moe_dsa_options": Case(
        config={
            "architectures": ["GlmMoeDsaForCausalLM"],
            "model_type": "glm_moe_dsa",
            "num_hidden_layers": 3,
            **LATENT,
            "rope_parameters": {**YARN, "rope_theta": 1024.0, "mscale": 0.75, "mscale_all_dim": 0.25},
            "hidden_act": "relu",
            "attention_bias": True,
            "mlp_layer_types": ["dense", "sparse", "dense"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": False,
            "index_topk": 12,
            "index_head_dim": 8,
            "index_n_heads": 8,
            "index_topk_freq": 2,
            "index_skip_topk_offset": 1,
            "tie_word_embeddings": True,
        },
        silent=("num_key_value_heads", "index_skip_topk_offset"),
        gguf=False,
    ),
    "glm": Case(
        config={
            "architectures": ["GlmForCausalLM"],
            "model_type": "glm",
            "head_dim": 16,
            "partial_rotary_factor": 0.25,
            "rope_theta": 64.0,
            "attention_bias": True,
        },
        silent=("attention_bias",),
        gguf=False,  # llama.cpp's converter has the names of the first release only
    ),
    "glm_options": Case(
        config={
            "architectures": ["GlmForCausalLM"],
            "model_type": "glm",
            "head_dim": 16,
            "hidden_act": "relu",
            "attention_bias": False,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "tie_word_embeddings": True,
        },
        gguf=False,
    ),
    "llama4": Case(
        config={
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size": 24,
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 16,
            "floor_scale": 8,
            "attn_scale": 0.5,
            "attention_bias": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "rope_theta": 1024.0,
        },
        gguf=False,
    ),
    "llama4_options": Case(
        config={
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "num_hidden_layers": 3,
            "head_dim": 16,
            "hidden_act": "gelu",
            "intermediate_size_mlp": 40,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "moe_layers": [0, 2],
            "no_rope_layers": [1, 0, 1],
            "layer_types": ["full_attention", "chunked_attention", "chunked_attention"],
            "attention_chunk_size": 8,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "floor_scale": 4,
            "tie_word_embeddings": True,
        },
        silent=("floor_scale",),
        gguf=False,
    ),
    "gemma4": Case(
        config={
            "architectures": ["Gemma4ForCausalLM"],
            "model_type": "gemma4_text",
            "num_hidden_layers": 4,
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 96,
            "final_logit_softcapping": 4.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 256.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 64.0},
            },
            "tie_word_embeddings": True,
        },
        silent=("tie_word_embeddings",),
        gguf=False,
    ),
    "gemma4_options": Case(
        config={
            "architectures": ["Gemma4ForCausalLM"],
            "model_type": "gemma4_text",
            "num_hidden_layers": 6,
            "hidden_size": 16,
            "head_dim": 8,
            "global_head_dim": 16,
            "hidden_activation": "silu",
            "sliding_window": 12,
            "attention_bias": True,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "use_bidirectional_attention": "vision",
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 12,
            "tie_word_embeddings": False,
        },
        silent=("use_bidirectional_attention", "tie_word_embeddings"),
        gguf=False,
    ),
    "qwen3_next": Case(
        config={
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "num_hidden_layers": 4,
            "head_dim": 16,
            "rope_theta": 1024.0,
            "partial_rotary_factor": 0.5,
            "linear_conv_kernel_dim": 3,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [1],
        },
        gains_less_one=True,
        gguf=False,  # llama.cpp reorders the rows of its matrices
    ),
    "qwen3_next_options": Case(
        config={
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "hidden_act": "relu",
            "attention_bias": True,
            "head_dim": 16,
            "rope_parameters": {**YARN, "rope_theta": 1024.0, "partial_rotary_factor": 0.5},
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
        gains_less_one=True,
        gguf=False,
    ),
    "qwen3_5": Case(
        config={
            "architectures": ["Qwen3_5ForCausalLM"],
            "model_type": "qwen3_5_text",
            "full_attention_interval": 2,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1024.0, "partial_rotary_factor": 0.5,
                                "mrope_interleaved": True, "mrope_section": [2, 1, 1]},
            "linear_conv_kernel_dim": 3,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        gains_less_one=True,
        gguf=False,
    ),
    "qwen3_5_moe": Case(
        config={
            "architectures": ["Qwen3_5MoeForCausalLM"],
            "model_type": "qwen3_5_moe_text",
            "intermediate_size": None,
            "layer_types": ["linear_attention", "full_attention"],
            "hidden_act": "relu",
            "attention_bias": True,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1024.0, "partial_rotary_factor": 0.5},
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "tie_word_embeddings": True,
        },
        gains_less_one=True,
        gguf=False,
    ),
}


def packed_mxfp4(shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    """The tensors that a folder has in place of the experts' matrices."""
    packed = {}
    for name, shape in shapes.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = shape
            continue
        experts, inputs, outputs = shape
        packed[f"{name}_blocks"] = torch.Size((experts, outputs, inputs // 32, 16))
        packed[f"{name}_scales"] = torch.Size((experts, outputs, inputs // 32))
    return packed


def draw_weights(shapes: dict[str, torch.Size], seed: int, gains_less_one: bool) -> dict[str, torch.Tensor]:
    """Random weights that make a lively model: logits a few units apart, attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("bias", "sinks")):
            weights[name] = noise / 2
        elif name.endswith("_blocks"):
            weights[name] = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        elif name.endswith("_scales"):
            weights[name] = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
        elif name.endswith(("layer_scalar", "expert_scale", "router.scale")):
            weights[name] = 1 + noise / 4
        elif "norm" in name:
            last = name in ("model.norm.weight", "model.final_layernorm.weight")
            weights[name] = noise / 4 + (1 if last else 0) + (0 if gains_less_one else 1)
        elif "embed_tokens" in name or "lm_head" in name:
            weights[name] = noise / 4  # small, so that a tied model does more than repeat its last token
        else:
            gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
            weights[name] = gain * noise / shape[-1] ** 0.5
    packed = {name: weight for name, weight in weights.items() if weight.dtype == torch.uint8}
    return {name: weight.to(torch.bfloat16) for name, weight in weights.items()} | packed


def further_layer(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A layer behind the last one that predicts a further token: checkpoints have it, transformers does not."""
    layers, width, vocabulary = (config[key] for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    last, new = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    block = {name.replace(last, new): weight.clone() for name, weight in weights.items() if name.startswith(last)}
    shapes = {
        "eh_proj": (width, 2 * width), "enorm": (width,), "hnorm": (width,), "shared_head.norm": (width,),
        "shared_head.head": (vocabulary, width), "embed_tokens": (vocabulary, width),
    }  # fmt: skip
    further = {f"{new}{name}.weight": torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    return block | further


@torch.no_grad()
def logits_of(folder: Path, prompt: np.ndarray) -> np.ndarray:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, ignore_mismatched_sizes=True
    )
    assert not any(report.values()), report
    return model.eval()(torch.tensor(prompt, dtype=torch.int64)[None], use_cache=False).logits[0].numpy()


def check_that_options_matter(folder: Path, case: Case, prompt: np.ndarray, logits: np.ndarray) -> None:
    """Each option of a case must be heard by the reference, or the case proves nothing about it."""
    path = folder / "config.json"
    written = path.read_text()
    config = json.loads(written)
    for key in config.keys() & case.config.keys() - {"architectures", "model_type", *case.silent}:
        path.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        try:
            difference = np.abs(logits_of(folder, prompt) - logits).max()
        except Exception:  # whatever transformers says: the configuration or the weights do not fit without it
            continue
        finally:
            path.write_text(written)
        assert difference > 1e-2, f"{folder.name}: {key} changes logits by {difference:.1e} only"


def write_gguf(folder: Path) -> None:
    from conversion import ModelBase, get_model_class
    from gguf import LlamaFileType

    config = json.loads((folder / "config.json").read_text())
    converter = get_model_class(config["architectures"][0])
    converter.set_vocab = lambda self: None
    tokenizer = folder / "tokenizer.json"  # some converters count its tokens
    vocabulary = dict.fromkeys(range(config["vocab_size"]))
    tokenizer.write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    with torch.inference_mode():
        hparams = ModelBase.load_hparams(folder, False)
        converter(folder, LlamaFileType.MOSTLY_BF16, folder / "model.gguf", hparams=hparams).write()
    tokenizer.unlink()


def make(name: str, case: Case, seed: int) -> None:
    folder = HERE / "families" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    said = {key: value for key, value in {**BASE, **case.config}.items() if value is not None}
    config = {key: None if value is ... else value for key, value in said.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {key: value.shape for key, value in revert_weight_conversion(blank, blank.state_dict()).items()}
    if blank.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    if case.config.get("quantization_config"):
        shapes = packed_mxfp4(shapes)
    weights = draw_weights(shapes, seed, case.gains_less_one)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    prompt = np.random.default_rng(seed).integers(3, config["vocab_size"], LENGTH).astype(np.int32)
    logits = logits_of(folder, prompt)
    check_that_options_matter(folder, case, prompt, logits)
    np.savez_compressed(folder / "expected.npz", prompt=prompt, logits=logits)
    if config.get("num_nextn_predict_layers"):
        weights |= further_layer(weights, config)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if case.gguf:
        write_gguf(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size // 1024} KiB, logits' standard deviation {logits.std():.2f}")


if __name__ == "__main__":
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    for seed, (name, case) in enumerate(CASES.items()):
        if name in sys.argv[2:] or len(sys.argv) == 2:
            make(name, case, seed)
