"""GLM-4.7-Flash: the attention and the experts of DeepSeek V3 in other sizes.

Reference: transformers' Glm4MoeLiteForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.deepseek import DeepseekConfig, read_deepseek_v3

__all__ = ["Glm4MoeLiteConfig"]

_DEFAULTS = {
    "max_position_embeddings": 202_752,
    "rms_norm_eps": 1e-5,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 768,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "routed_scaling_factor": 1.8,
    "v_head_dim": 256,
    "moe_intermediate_size": 1536,
}


class Glm4MoeLiteConfig(DeepseekConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> DeepseekConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        return DeepseekConfig(**read_deepseek_v3(ConfigReader(config, _DEFAULTS)))
