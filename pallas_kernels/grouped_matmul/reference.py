"""Grouped matmul in XLA operations: a loop over tiles of rows of one expert.

``jax.lax.ragged_dot`` is not used: except on TPUs it multiplies every row with every expert and masks the rest, which
is E times the arithmetic, and on GPUs it may make E copies of the rows. ``bench.py`` times it beside the kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.quantized_matmul import QuantizedWeight, cpu
from pallas_kernels.quantized_matmul import reference as dense

__all__ = ["Tiles", "collect", "grouped_matmul", "plan", "rows_of_tile"]

#: Rows of a tile at least and at most: fewer bring a matrix more often, more are mostly padding.
FEWEST, MOST = 8, 64


class Tiles(NamedTuple):
    """Sorted rows cut into tiles of one size that each belong to one expert.

    Attributes:
      expert: of each tile.
      start: first row of each tile. A tile that would pass the end of the rows starts earlier, and tiles may hold rows
        of other experts before and after their own.
      used: number of tiles in use; they come first.
      place: of each row of ``x``, its row among the rows of all tiles.
    """

    expert: Int[Array, "n"]
    start: Int[Array, "n"]
    used: Int[Array, ""]
    place: Int[Array, "T"]


def grouped_matmul(
    x: Float[Array, "T I"], weights: Float[Array, "E O I"] | QuantizedWeight, group_sizes: Int[Array, "E"]
) -> Float[Array, "T O"]:
    """See :func:`pallas_kernels.grouped_matmul.grouped_matmul`."""
    experts, outputs = group_sizes.shape[0], weights.shape[-2]
    rows = rows_of_tile(len(x), experts, FEWEST, MOST)
    tiles = plan(group_sizes, len(x), rows)
    padded = jnp.pad(x, ((0, max(0, rows - len(x))), (0, 0)))

    def multiply(tile: jax.Array, out: jax.Array) -> jax.Array:
        some = lax.dynamic_slice_in_dim(padded, tiles.start[tile], rows)
        one = jax.tree.map(lambda stack: stack[tiles.expert[tile]], weights)
        if isinstance(one, QuantizedWeight):
            product = lax.platform_dependent(some, one, cpu=cpu.matmul, default=dense.matmul)
        else:
            product = jnp.einsum("ti,oi->to", some, one, preferred_element_type=jnp.float32).astype(x.dtype)
        return lax.dynamic_update_index_in_dim(out, product, tile, 0)

    out = jnp.zeros((len(tiles.expert), rows, outputs), x.dtype)
    return collect(lax.fori_loop(0, tiles.used, multiply, out), tiles, group_sizes)


def rows_of_tile(rows: int, experts: int, fewest: int, most: int) -> int:
    """The rows that an expert has on average, rounded up to a power of two within limits that are such powers."""
    return min(max(1 << (-(-rows // experts) - 1).bit_length(), fewest), most)


def plan(group_sizes: Int[Array, "E"], rows: int, rows_of_tile: int, *, align: int = 1) -> Tiles:
    """Cut sorted rows into as many tiles as any ``group_sizes`` may need.

    Arguments:
      align: every tile starts at a multiple of it, if need be before the first row of its expert. It divides
        ``rows_of_tile``, and the rows to read are padded to a multiple of it and to one tile at least.
    """
    sizes = group_sizes.astype(jnp.int32)
    ends = jnp.cumsum(sizes)
    first = (ends - sizes) // align * align
    counts = jnp.where(sizes > 0, -(-(ends - first) // rows_of_tile), 0)
    tile_ends = jnp.cumsum(counts)
    tile_begin = tile_ends - counts
    last = len(sizes) - 1

    # ceil((size + skipped) / R) is (size + skipped - 1) / R + 1 at most, and less than ``align`` rows are skipped
    busy = min(len(sizes), rows)
    tile = jnp.arange((rows + (align - 2) * busy) // rows_of_tile + busy, dtype=jnp.int32)
    expert = jnp.minimum(jnp.searchsorted(tile_ends, tile, side="right", method="compare_all"), last).astype(jnp.int32)
    start = first[expert] + (tile - tile_begin[expert]) * rows_of_tile
    start = jnp.clip(start, 0, max(0, -(-rows // align) * align - rows_of_tile))

    row = jnp.arange(rows, dtype=jnp.int32)
    owner = jnp.minimum(jnp.searchsorted(ends, row, side="right", method="compare_all"), last)
    mine = jnp.minimum(tile_begin[owner] + (row - first[owner]) // rows_of_tile, len(tile) - 1)
    return Tiles(expert, start, tile_ends[-1], mine * rows_of_tile + row - start[mine])


def collect(out: Float[Array, "n R O"], tiles: Tiles, group_sizes: Int[Array, "E"]) -> Float[Array, "T O"]:
    """The rows of ``x`` from those of all tiles; zeros for rows that no expert has."""
    row = jnp.arange(len(tiles.place), dtype=jnp.int32)
    rows = out.reshape(-1, out.shape[2]).at[tiles.place].get(mode="clip")
    return jnp.where((row < group_sizes.sum())[:, None], rows, 0)
