"""Which port runs which checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from cvllm_jax.errors import ModelLoadError, shown
from cvllm_jax.models.bert import Bert, BertConfig
from cvllm_jax.models.cache_groups import CacheGroup
from cvllm_jax.models.deepseek import Deepseek, DeepseekV2Config, DeepseekV3Config
from cvllm_jax.models.deepseek_v32 import DeepseekV32, DeepseekV32Config, GlmMoeDsaConfig
from cvllm_jax.models.gemma import Gemma, GemmaConfig
from cvllm_jax.models.gemma2 import Gemma2, Gemma2Config
from cvllm_jax.models.gemma3 import Gemma3, Gemma3Config
from cvllm_jax.models.gemma3_embedding import Gemma3Embedding, Gemma3EmbeddingConfig
from cvllm_jax.models.gemma4 import Gemma4, Gemma4Config
from cvllm_jax.models.glm import Glm, GlmConfig
from cvllm_jax.models.glm4 import Glm4, Glm4Config
from cvllm_jax.models.glm4_moe import Glm4Moe, Glm4MoeConfig
from cvllm_jax.models.glm4_moe_lite import Glm4MoeLiteConfig
from cvllm_jax.models.gpt_oss import GptOss, GptOssConfig
from cvllm_jax.models.granite import Granite, GraniteConfig
from cvllm_jax.models.layers import BlockBatch
from cvllm_jax.models.layers.moe import ExpertSizes
from cvllm_jax.models.llama import Llama, LlamaConfig
from cvllm_jax.models.llama4 import Llama4, Llama4Config
from cvllm_jax.models.minimax_m2 import MiniMaxM2, MiniMaxM2Config
from cvllm_jax.models.mistral import Mistral, MistralConfig
from cvllm_jax.models.mixtral import Mixtral, MixtralConfig
from cvllm_jax.models.olmo2 import Olmo2, Olmo2Config
from cvllm_jax.models.phi import Phi, PhiConfig
from cvllm_jax.models.phi3 import Phi3, Phi3Config
from cvllm_jax.models.qwen2 import Qwen2, Qwen2Config
from cvllm_jax.models.qwen2_moe import Qwen2Moe, Qwen2MoeConfig
from cvllm_jax.models.qwen3 import Qwen3, Qwen3Config
from cvllm_jax.models.qwen3_5 import Qwen35Config, Qwen35MoeConfig
from cvllm_jax.models.qwen3_embedding import Qwen3Embedding, Qwen3EmbeddingConfig
from cvllm_jax.models.qwen3_moe import Qwen3Moe, Qwen3MoeConfig
from cvllm_jax.models.qwen3_next import Qwen3Next, Qwen3NextConfig
from cvllm_jax.models.recurrent import LayerCache, RecurrentLayers
from cvllm_jax.models.smollm3 import SmolLM3, SmolLM3Config
from cvllm_jax.models.stablelm import StableLm, StableLmConfig
from cvllm_jax.models.starcoder2 import Starcoder2, Starcoder2Config

__all__ = ["FAMILIES", "Encoder", "Family", "Model", "ModelConfig", "family_for"]


class ModelConfig(Protocol):
    """What the engine asks of every family's configuration."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated: what kernels must cope with."""
        ...

    @property
    def context_length(self) -> int: ...
    @property
    def experts(self) -> ExpertSizes | None:
        """Of layers that are mixtures of experts; None if there are none."""
        ...

    @property
    def shares_values(self) -> bool:
        """Whether values are a part of the keys, so that the cache has no pages for them (latent attention)."""
        ...

    @property
    def index_dim(self) -> int:
        """Numbers of the key that an indexer looks for, which are in these pages then; 0 if there is no indexer."""
        ...

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """The layers by how long their keys and values are needed; each is in one group, unless it is recurrent."""
        ...

    @property
    def recurrent(self) -> RecurrentLayers | None:
        """The layers that remember a matrix of each sequence and have no keys and values; None if there are none."""
        ...


class Model(Protocol):
    """What the engine asks of the module of every family that generates text."""

    def __call__(
        self, tokens: jax.Array, cache: tuple[LayerCache, ...], batches: tuple[BlockBatch, ...]
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """See :class:`cvllm_jax.models.decoder.Decoder`."""
        ...

    def logits(self, hidden: jax.Array) -> jax.Array: ...


class Encoder(Protocol):
    """What the embedding engine asks of the module of every family that encodes text."""

    def __call__(self, tokens: jax.Array, counts: jax.Array) -> jax.Array:
        """Hidden states ``[B, L, D]`` of tokens ``[B, L]``, of which the first ``counts`` of each row are real."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A port and the checkpoints it runs."""

    name: str
    """Also the module in ``cvllm_jax.checkpoints.mappings`` that names the weights."""
    architectures: tuple[str, ...]
    """Values of ``architectures`` in ``config.json``; GGUF files are read into the same names."""
    model_types: tuple[str, ...]
    """Values of ``model_type``, for a ``config.json`` that names no architecture."""
    kind: Literal["causal", "encoder"] = "causal"
    """Whether the port is a :class:`Model` or an :class:`Encoder`."""
    config: Callable[[Mapping[str, Any]], ModelConfig]
    """Reads ``config.json``, with the engine's ``max_sequence_length`` among its keys, which may be None."""
    module: Callable[[Any, jnp.dtype], nnx.Module]


def _causal(name: str, *architectures: str, config: Any, module: Any, model_types: tuple[str, ...] = ()) -> Family:
    return Family(
        name=name,
        architectures=architectures,
        model_types=model_types or (name,),
        config=config.from_dict,
        module=module,
    )


def _encoder(name: str, *architectures: str, config: Any, module: Any) -> Family:
    return replace(_causal(name, *architectures, config=config, module=module), kind="encoder")


FAMILIES = (
    _causal("llama", "LlamaForCausalLM", config=LlamaConfig, module=Llama),
    _causal("llama4", "Llama4ForCausalLM", config=Llama4Config, module=Llama4, model_types=("llama4_text",)),
    _causal("mistral", "MistralForCausalLM", config=MistralConfig, module=Mistral),
    _causal("mixtral", "MixtralForCausalLM", config=MixtralConfig, module=Mixtral),
    _causal("qwen2", "Qwen2ForCausalLM", config=Qwen2Config, module=Qwen2),
    _causal("qwen3", "Qwen3ForCausalLM", config=Qwen3Config, module=Qwen3),
    _causal("qwen3_moe", "Qwen3MoeForCausalLM", config=Qwen3MoeConfig, module=Qwen3Moe),
    _causal("qwen2_moe", "Qwen2MoeForCausalLM", config=Qwen2MoeConfig, module=Qwen2Moe),
    _causal("qwen3_next", "Qwen3NextForCausalLM", config=Qwen3NextConfig, module=Qwen3Next),
    _causal(
        "qwen3_5", "Qwen3_5ForCausalLM", config=Qwen35Config, module=Qwen3Next, model_types=("qwen3_5_text",)
    ),
    _causal(
        "qwen3_5_moe", "Qwen3_5MoeForCausalLM", config=Qwen35MoeConfig, module=Qwen3Next,
        model_types=("qwen3_5_moe_text",),
    ),
    _causal("gpt_oss", "GptOssForCausalLM", config=GptOssConfig, module=GptOss),
    _causal("deepseek_v2", "DeepseekV2ForCausalLM", config=DeepseekV2Config, module=Deepseek),
    _causal("deepseek_v3", "DeepseekV3ForCausalLM", config=DeepseekV3Config, module=Deepseek),
    _causal("minimax_m2", "MiniMaxM2ForCausalLM", config=MiniMaxM2Config, module=MiniMaxM2),
    _causal("gemma3", "Gemma3ForCausalLM", config=Gemma3Config, module=Gemma3, model_types=("gemma3_text",)),
    _causal("gemma4", "Gemma4ForCausalLM", config=Gemma4Config, module=Gemma4, model_types=("gemma4_text",)),
    _causal("gemma2", "Gemma2ForCausalLM", config=Gemma2Config, module=Gemma2),
    _causal("gemma", "GemmaForCausalLM", config=GemmaConfig, module=Gemma),
    _causal("phi3", "Phi3ForCausalLM", config=Phi3Config, module=Phi3),
    _causal("smollm3", "SmolLM3ForCausalLM", config=SmolLM3Config, module=SmolLM3),
    _causal("granite", "GraniteForCausalLM", config=GraniteConfig, module=Granite),
    _causal("olmo2", "Olmo2ForCausalLM", config=Olmo2Config, module=Olmo2),
    _causal("starcoder2", "Starcoder2ForCausalLM", config=Starcoder2Config, module=Starcoder2),
    _causal("stablelm", "StableLmForCausalLM", config=StableLmConfig, module=StableLm),
    _causal("phi", "PhiForCausalLM", config=PhiConfig, module=Phi),
    _causal("glm", "GlmForCausalLM", config=GlmConfig, module=Glm),
    _causal("glm4", "Glm4ForCausalLM", config=Glm4Config, module=Glm4),
    _causal("glm4_moe", "Glm4MoeForCausalLM", config=Glm4MoeConfig, module=Glm4Moe),
    _causal("glm4_moe_lite", "Glm4MoeLiteForCausalLM", config=Glm4MoeLiteConfig, module=Deepseek),
    _causal("deepseek_v32", "DeepseekV32ForCausalLM", config=DeepseekV32Config, module=DeepseekV32),
    _causal("glm_moe_dsa", "GlmMoeDsaForCausalLM", config=GlmMoeDsaConfig, module=DeepseekV32),
    _encoder("bert", "BertModel", config=BertConfig, module=Bert),
    _encoder("qwen3_embedding", "Qwen3Model", config=Qwen3EmbeddingConfig, module=Qwen3Embedding),
    _encoder("gemma3_embedding", "Gemma3TextModel", config=Gemma3EmbeddingConfig, module=Gemma3Embedding),
)


def family_for(config: Mapping[str, Any]) -> Family:
    """The family that runs a checkpoint with this configuration, or a ModelLoadError that lists what there is."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    model_type = config.get("model_type") if names is None else None
    for family in FAMILIES:
        if name in family.architectures or model_type in family.model_types:
            return family
    supported = ", ".join(architecture for family in FAMILIES for architecture in family.architectures)
    raise ModelLoadError(f"architecture {shown(name or model_type)} is not supported; supported are {supported}")
