"""sort_pairs: sorts (token, expert) pairs by expert and lists the tiles of the grouped product."""

from __future__ import annotations

import functools
from typing import NamedTuple

import mlx.core as mx

from mlx_ferrum.launch import Kernel

from .header import header

LANES = 32
SIMDGROUPS = 4  # experts per threadgroup
BODY = """
    sort_pairs<SIZE>(ids, order, tiles, ids_shape[0], EXPERTS, thread_position_in_grid.x / 32,
                     thread_index_in_simdgroup);
"""


class Order(NamedTuple):
    """Pairs sorted by expert, stably; pairs with ids out of range come last.

    pairs: (n,) int32, indices of pairs
    tiles: (n // size + experts + 1, 3) int32: the expert, the index of its first pair in `pairs`, and the number of
        pairs, 0 for an unused tile
    size: the largest number of pairs in a tile
    """

    pairs: mx.array
    tiles: mx.array
    size: int


def sort_pairs(ids: mx.array, experts: int, *, size: int) -> Order:
    """Sorts pairs in one launch. ids: (n,) integers; size: pairs per tile"""
    if ids.ndim != 1 or not mx.issubdtype(ids.dtype, mx.integer):
        raise ValueError(f"sort_pairs: ids are {ids.dtype} {ids.shape}, expected integers (n,)")
    most = ids.size // size + experts + 1  # one more for ids out of range
    if not ids.size:
        return Order(mx.zeros(0, mx.int32), mx.zeros((most, 3), mx.int32), size)
    pairs, tiles = _kernel()(
        [ids],
        template={"EXPERTS": experts, "SIZE": size},
        grid=(LANES * (experts + 1), 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[ids.shape, (most, 3)],
        output_dtypes=[mx.int32, mx.int32],
    )
    return Order(pairs, tiles, size)


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="sort_pairs",
        source=BODY,
        inputs=("ids",),
        outputs=("order", "tiles"),
        header=header("sort_pairs.metal"),
    )
