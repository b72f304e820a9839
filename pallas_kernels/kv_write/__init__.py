"""Writing new keys and values into the pages of a KV cache."""

from pallas_kernels.kv_write.api import write_kv

__all__ = ["write_kv"]
