"""Attention of packed query blocks over a paged KV cache."""

from pallas_kernels.paged_attention.api import Choice, Implementation, choose_implementation, paged_attention
from pallas_kernels.paged_attention.config import HopperConfig

__all__ = ["Choice", "HopperConfig", "Implementation", "choose_implementation", "paged_attention"]
