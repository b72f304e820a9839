"""Attention of packed query blocks over a paged KV cache."""

from pallas_kernels.paged_attention.api import paged_attention

__all__ = ["paged_attention"]
