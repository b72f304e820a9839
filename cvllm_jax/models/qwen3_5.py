"""Qwen3.5, text: Qwen3-Next's layers with other numbers, with a feed-forward block or with experts in every layer.

Reference: transformers' Qwen3_5ForCausalLM and Qwen3_5MoeForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import read_experts
from cvllm_jax.models.qwen3_next import HYBRID_DEFAULTS, Qwen3NextConfig, read_hybrid

__all__ = ["Qwen35Config", "Qwen35MoeConfig"]

_DENSE_DEFAULTS = {**HYBRID_DEFAULTS, "num_key_value_heads": 4}
_MOE_DEFAULTS = {
    **HYBRID_DEFAULTS,
    "num_key_value_heads": 2,
    "intermediate_size": 1,  # no layer has it
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen35Config(Qwen3NextConfig):
    by_key_head: bool = False

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen35Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        hybrid = read_hybrid(ConfigReader(config, _DENSE_DEFAULTS))
        return Qwen35Config(**hybrid, has_experts=(False,) * hybrid["num_layers"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen35MoeConfig(Qwen3NextConfig):
    by_key_head: bool = False

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen35MoeConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _MOE_DEFAULTS)
        hybrid = read_hybrid(read)
        return Qwen35MoeConfig(
            **hybrid,
            experts=read_experts(read, "num_experts"),
            has_experts=(True,) * hybrid["num_layers"],
            shared_hidden=read.positive("shared_expert_intermediate_size"),
        )
