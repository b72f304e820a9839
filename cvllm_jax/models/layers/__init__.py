"""Parts that model families share."""

from cvllm_jax.models.layers.activation import ACTIVATIONS
from cvllm_jax.models.layers.attention import Attention, BlockBatch, Kernels
from cvllm_jax.models.layers.blocks import ParallelBlock, PreNormBlock, SandwichBlock
from cvllm_jax.models.layers.linear import Embedding, Linear, Weighted, WeightLayout
from cvllm_jax.models.layers.mlp import GatedMlp, Mlp
from cvllm_jax.models.layers.norm import LayerNorm, RmsNorm
from cvllm_jax.models.layers.rope import Rope, RopeTables

__all__ = [
    "ACTIVATIONS", "Attention", "BlockBatch", "Embedding", "GatedMlp", "Kernels", "LayerNorm", "Linear", "Mlp",
    "ParallelBlock", "PreNormBlock", "RmsNorm", "Rope", "RopeTables", "SandwichBlock", "WeightLayout",
    "Weighted",
]  # fmt: skip
