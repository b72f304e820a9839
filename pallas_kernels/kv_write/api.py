"""The public operation: choose an implementation for the hardware at hand."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write import reference

__all__ = ["write_kv"]


def write_kv(
    pages: Float[Array, "P K S H"],
    new: Float[Array, "T K H"],
    page: Int[Array, "T"],
    offset: Int[Array, "T"],
) -> Float[Array, "P K S H"]:
    """Write one layer's new keys (or values) of T tokens; token t goes to ``pages[page[t], :, offset[t]]``.

    Updates in place where the compiler may reuse ``pages``. Tokens that are padding name a page that nobody reads.
    """
    return reference.write_kv(pages, new, page, offset)
