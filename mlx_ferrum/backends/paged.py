"""Keys and values in blocks, for backends that compute with MLX: copied out of the blocks to be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx

from ..batch import Place

MOST = 127  # of 8-bit numbers


class Past(NamedTuple):
    """What the rows of one sequence see.

    rows: where they lie among those of the batch
    keys: (g, s, d), values: (g, s, dv), of consecutive positions, the last of which are those of the rows
    seen: (rows, s), whether a row sees a position
    """

    rows: slice
    keys: mx.array
    values: mx.array
    seen: mx.array


def store(at: Place, keys: mx.array, values: mx.array) -> None:
    """Put keys (n, g, d) and values (n, g, dv) of a batch's rows where they belong."""
    to = at.storage
    block, offset = at.paging.mlx_slots // to.size, at.paging.mlx_slots % to.size
    if to.kv.bits == 8:
        keys, to.key_scales[block, :, offset] = _narrowed(keys)
        values, to.value_scales[block, :, offset] = _narrowed(values)
    to.keys[block, :, offset] = keys.astype(to.keys.dtype)
    to.values[block, :, offset] = values.astype(to.values.dtype)


def pasts(at: Place) -> Iterator[Past]:
    """For each sequence of the batch what its rows see, from the first block that one of them sees."""
    batch, window, size = at.batch, at.storage.kv.window, at.storage.size
    for i, held in enumerate(batch.lengths.tolist()):
        start, stop = batch.starts[i : i + 2].tolist()
        new = held - (stop - start)
        first = 0 if window is None else max(0, new - window + 1) // size * size
        blocks = mx.array(at.paging.table[i, first // size : -(-held // size)])
        positions = mx.arange(first, held)
        behind = mx.arange(new, held)[:, None] - positions
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        yield Past(slice(start, stop), *_gathered(at, blocks, held - first), seen)


def _gathered(at: Place, blocks: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The first `count` keys and values of consecutive blocks: (g, count, d) and (g, count, dv)."""
    held = at.storage
    pairs = (held.keys, held.key_scales), (held.values, held.value_scales)
    out = []
    for numbers, scales in pairs:
        found = numbers[blocks] if scales is None else numbers[blocks] * scales[blocks][..., None]
        out.append(found.swapaxes(0, 1).reshape(held.kv.heads, -1, found.shape[-1])[:, :count])
    return out[0], out[1]


def _narrowed(x: mx.array) -> tuple[mx.array, mx.array]:
    """x (n, g, d) as whole numbers of 8 bits, and their scales (n, g)."""
    scales = mx.abs(x.astype(mx.float32)).max(axis=-1) / MOST
    steps = mx.where(scales > 0, scales, 1)[..., None]
    return mx.round(x.astype(mx.float32) / steps).astype(mx.int8), scales
