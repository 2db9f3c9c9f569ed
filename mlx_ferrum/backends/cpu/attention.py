"""Attention and what comes before it, over keys and values in blocks.

Keys and values are float16 or 8 bits: attention over a long context is bound by reading them.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from ...batch import Batch, Place
from ...kernels.cpu import native
from ...options import HeadNorms
from .arguments import constant, floats
from .memory import ALIGNMENT, empty, trace

TYPES = {8: np.int8, 16: np.float16, 32: np.float32}
SIZE = 32  # positions of a block where keys and values come from outside of a pool


def allocate(shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Zeros, whose pages the system makes when they are first used; they start where any vector may be written."""
    size, nbytes = math.prod(shape), bits // 8
    room = np.zeros(size + ALIGNMENT // nbytes, TYPES[bits])
    start = -native.address(room) % ALIGNMENT // nbytes
    return room[start : start + size].reshape(shape)


def append(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    at: Place,
    frequencies: mx.array,
    *,
    interleaved: bool,
    magnitude: float = 1.0,
    norms: HeadNorms | None = None,
) -> np.ndarray:
    q, k, v = map(floats, (q, k, v))
    (rows, heads, wide), (groups, dv), d = q.shape, v.shape[1:], k.shape[-1]
    q_weight, k_weight, eps = (None, None, 0.0) if norms is None else norms
    turned, to = empty(rows, heads, d), at.storage
    native.run(
        "Append",
        q=q,
        k=k,
        v=v,
        q_weight=None if q_weight is None else constant("append: norm of q", q_weight, d),
        k_weight=None if k_weight is None else constant("append: norm of k", k_weight, d),
        angles=_angles(at.batch, frequencies, magnitude),
        slots=trace(at.paging.slots),
        turned=turned,
        keys=to.keys,
        values=to.values,
        key_scales=to.key_scales,
        value_scales=to.value_scales,
        blocks=to.blocks,
        size=to.size,
        bits=to.kv.bits,
        rows=rows,
        heads=heads,
        wide=wide,
        groups=groups,
        d=d,
        dv=dv,
        pairs=frequencies.size,
        interleaved=interleaved,
        eps=eps,
    )
    return turned


def _angles(batch: Batch, frequencies: mx.array, magnitude: float) -> np.ndarray:
    """Cosines and sines (n, 2, pairs) of the rows' positions, once for all layers with the same frequencies."""
    key = (id(frequencies), magnitude)
    _, found = batch.shared.get(key, (None, None))
    if found is None:
        turns = constant("append: frequencies", frequencies, *frequencies.shape)
        rows, pairs = len(batch.positions), turns.size
        found = empty(rows, 2, pairs)
        batch.shared[key] = (
            frequencies,
            found,
        )  # as long as both live, no other array has this identity
        native.run(
            "Angles",
            frequencies=turns,
            positions=trace(batch.positions),
            out=found,
            rows=rows,
            pairs=pairs,
            magnitude=magnitude,
        )
    return found


def attend(
    q: np.ndarray, at: Place, *, scale: float, softcap: float = 0.0, sinks: mx.array | None = None
) -> np.ndarray:
    held, table = at.storage, at.paging.table
    return _attend(
        floats(q),
        held.keys,
        held.values,
        key_scales=held.key_scales,
        value_scales=held.value_scales,
        sinks=None if sinks is None else constant("attend: sinks", sinks, q.shape[1]),
        starts=at.batch.starts,
        lengths=at.batch.lengths,
        table=table,
        sequences=len(table),
        width=table.shape[1],
        window=held.kv.window or 0,
        both_ways=False,
        scale=scale,
        softcap=softcap,
    )


def attend_both_ways(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, lengths: list[int], *, scale: float
) -> np.ndarray:
    b, _, length, _ = q.shape
    blocks = -(-length // SIZE)  # of a sequence
    keys, values = (_in_blocks(x, blocks) for x in (k, v))
    rows = np.concatenate([np.arange(n) + i * length for i, n in enumerate(lengths)])
    flat = q.swapaxes(1, 2).reshape(b * length, q.shape[1], -1)  # (b l, h, d)
    attended = _attend(
        floats(flat[rows]),
        keys,
        values,
        key_scales=None,
        value_scales=None,
        sinks=None,
        starts=np.cumsum([0, *lengths], dtype=np.int32),
        lengths=np.array(lengths, np.int32),
        table=np.arange(b * blocks, dtype=np.int32).reshape(b, blocks),
        sequences=b,
        width=blocks,
        window=0,
        both_ways=True,
        scale=scale,
        softcap=0.0,
    )
    out = np.zeros((b * length, *attended.shape[1:]), np.float32)
    out[rows] = attended
    return out.reshape(b, length, *attended.shape[1:]).swapaxes(1, 2)


def _in_blocks(x: np.ndarray, blocks: int) -> np.ndarray:
    """x: (b, h, l, d) -> (b blocks, h, SIZE, d), zeros past the end of each sequence."""
    b, h, length, d = x.shape
    padded = np.zeros((b, h, blocks * SIZE, d), np.float32)
    padded[:, :, :length] = x
    cut = padded.reshape(b, h, blocks, SIZE, d).swapaxes(1, 2)
    return np.ascontiguousarray(cut).reshape(b * blocks, h, SIZE, d)


def _attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, **fields: Any) -> np.ndarray:
    """q: (n, h, d), keys: (blocks, g, size, d), values: (blocks, g, size, dv) -> (n, h, dv)"""
    out = empty(*q.shape[:2], values.shape[3])
    for name in ("starts", "lengths", "table"):
        trace(fields[name])
    native.run(
        "Attention",
        q=q,
        keys=keys,
        values=values,
        out=out,
        blocks=keys.shape[0],
        size=keys.shape[2],
        heads=q.shape[1],
        groups=keys.shape[1],
        d=q.shape[2],
        dv=values.shape[3],
        bits=8 * keys.itemsize,
        **fields,
    )
    return out
