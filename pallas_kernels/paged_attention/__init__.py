"""Attention of packed query blocks over a paged KV cache."""

from pallas_kernels.paged_attention.api import Choice, Implementation, choose_implementation, paged_attention
from pallas_kernels.paged_attention.config import HopperConfig
from pallas_kernels.paged_attention.selection import attend_to_selected, select_tokens

__all__ = [
    "Choice", "HopperConfig", "Implementation", "attend_to_selected", "choose_implementation", "paged_attention",
    "select_tokens",
]  # fmt: skip
