"""Parts that model families share."""

from cvllm_jax.models.layers.attention import Attention, BlockBatch, LayerCache
from cvllm_jax.models.layers.linear import Embedding, Linear
from cvllm_jax.models.layers.mlp import GatedMlp
from cvllm_jax.models.layers.norm import RmsNorm
from cvllm_jax.models.layers.rope import Rope, rotate

__all__ = ["Attention", "BlockBatch", "Embedding", "GatedMlp", "LayerCache", "Linear", "RmsNorm", "Rope", "rotate"]
