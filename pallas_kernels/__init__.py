"""Attention and matmul kernels, one folder an operation. Needs only jax.

Every folder has ``reference.py``, the definition in plain XLA operations that runs everywhere, and ``api.py``,
which picks an implementation. Axis letters: B query blocks, Q queries in a block, T tokens (B * Q), N query heads,
K kv heads, G query heads per kv head, H head dim, P pages, S tokens in a page, W pages in a block table's row.
"""
