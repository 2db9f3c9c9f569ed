"""Attention and what comes before it, over keys and values in blocks.

Keys and values are float16 or 8 bits: attention over a long context is bound by reading them.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...batch import Place
from ...kernels.cpu import native
from ...options import HeadNorms
from .arguments import constant, floats
from .memory import empty

TYPES = {8: np.int8, 16: np.float16, 32: np.float32}
SIZE = 32  # positions of a block where keys and values come from outside of a pool


def allocate(shape: tuple[int, ...], bits: int) -> np.ndarray:
    return np.zeros(shape, TYPES[bits])  # of the system, which makes pages when they are first used


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
    (rows, heads, d), (groups, dv) = q.shape, v.shape[1:]
    turns = constant("append: frequencies", frequencies, *frequencies.shape)
    q_weight, k_weight, eps = (None, None, 0.0) if norms is None else norms
    weights = [w if w is None else constant("append: norm", w, d) for w in (q_weight, k_weight)]
    turned, to = empty(rows, heads, d), at.storage
    native.run(
        "Append",
        q=q,
        k=k,
        v=v,
        q_weight=weights[0],
        k_weight=weights[1],
        frequencies=turns,
        pairs=turns.size,
        interleaved=interleaved,
        positions=at.batch.positions,
        slots=at.paging.slots,
        turned=turned,
        keys=to.keys,
        values=to.values,
        size=to.size,
        bits=to.kv.bits,
        key_scales=to.key_scales,
        value_scales=to.value_scales,
        rows=rows,
        heads=heads,
        groups=groups,
        d=d,
        dv=dv,
        magnitude=magnitude,
        eps=eps,
    )
    return turned


def attend(
    q: np.ndarray, at: Place, *, scale: float, softcap: float = 0.0, sinks: mx.array | None = None
) -> np.ndarray:
    q, held = floats(q), at.storage
    out = empty(*q.shape[:2], held.kv.value_dim)
    table = at.paging.table
    _attend(
        q,
        held.keys,
        held.values,
        out,
        key_scales=held.key_scales,
        value_scales=held.value_scales,
        starts=at.batch.starts,
        lengths=at.batch.lengths,
        table=table,
        sequences=len(table),
        width=table.shape[1],
        size=held.size,
        window=held.kv.window or 0,
        both_ways=False,
        scale=scale,
        softcap=softcap,
        sinks=None if sinks is None else constant("attend: sinks", sinks, q.shape[1]),
    )
    return out


def attend_both_ways(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, lengths: list[int], *, scale: float
) -> np.ndarray:
    q, k, v = (floats(x.swapaxes(1, 2)) for x in (q, k, v))  # (b, l, h, d)
    out = np.zeros((*q.shape[:3], v.shape[3]), np.float32)
    table = np.arange(-(-q.shape[1] // SIZE), dtype=np.int32)[None]
    for i, n in enumerate(lengths):
        _attend(
            q[i, :n],
            # a sequence is a block of its own for each SIZE rows, in which heads lie side by side
            *(x[i].reshape(1, -1, *x.shape[2:]).swapaxes(1, 2) for x in (k, v)),
            out[i, :n],
            key_scales=None,
            value_scales=None,
            sinks=None,
            starts=np.array([0, n], np.int32),
            lengths=np.array([n], np.int32),
            table=table,
            sequences=1,
            width=table.size,
            size=SIZE,
            window=0,
            both_ways=True,
            scale=scale,
            softcap=0.0,
        )
    return out.swapaxes(1, 2)


def _attend(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, out: np.ndarray, **fields: Any
) -> None:
    """q: (rows, h, d), keys: (blocks, g, size, d), values: (blocks, g, size, dv), out: (rows, h, dv)"""
    size = fields["size"]
    strides = {}
    for name, x in (("key", keys), ("value", values)):
        _, head, row, _ = (stride // x.itemsize for stride in x.strides)
        block = x[0].size if x.flags.c_contiguous else row * size
        strides |= {f"{name}_block": block, f"{name}_head": head, f"{name}_row": row}
    native.run(
        "Attention",
        q=q,
        keys=keys,
        values=values,
        out=out,
        heads=q.shape[1],
        groups=keys.shape[1],
        d=q.shape[2],
        dv=values.shape[3],
        **{"bits": 8 * keys.itemsize, **strides, **fields},
    )
