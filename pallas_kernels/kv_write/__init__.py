"""Rotary embedding of new queries and keys, and the write of new keys and values into the pages of a KV cache."""

from pallas_kernels.kv_write.api import Implementation, choose_implementation, rotate_and_write
from pallas_kernels.kv_write.keys import rotate_and_write_keys
from pallas_kernels.kv_write.pages import KvPages, has_scales
from pallas_kernels.kv_write.reference import rotate

__all__ = [
    "Implementation", "KvPages", "choose_implementation", "has_scales", "rotate", "rotate_and_write",
    "rotate_and_write_keys",
]  # fmt: skip
