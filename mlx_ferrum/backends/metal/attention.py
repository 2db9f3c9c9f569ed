"""Attention on a GPU: keys and values in blocks, which launches write and read where they lie."""

from __future__ import annotations

import mlx.core as mx

from ...batch import Place
from ...kernels import append as append_kernel
from ...kernels import attend as attend_kernel
from ...kernels.append import Pool
from ...kernels.attend import Seen
from ...kernels.attend_rows import MOST, QUERY_ROWS, attend_rows
from ...options import HeadNorms
from .thresholds import here

FILLED = 2  # tiles that a sequence fills at least; by reasoning, not timed


def append(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    at: Place,
    frequencies: mx.array,
    *,
    interleaved: bool,
    magnitude: float = 1.0,
    norms: HeadNorms | None = None,
) -> mx.array:
    turned, at.storage.mark = append_kernel.append(
        q,
        k,
        v,
        _pool(at),
        frequencies,
        positions=at.batch.mlx_positions,
        slots=at.paging.mlx_slots,
        interleaved=interleaved,
        magnitude=magnitude,
        norms=norms,
    )
    return turned


def attend(
    q: mx.array, at: Place, *, scale: float, softcap: float = 0.0, sinks: mx.array | None = None
) -> mx.array:
    pool, seen = _pool(at), _seen(at)
    if not _suits_matrices(q, pool, seen):
        return attend_few(q, at, scale=scale, softcap=softcap, sinks=sinks)
    out, at.storage.mark = attend_rows(
        q,
        pool.keys,
        pool.values,
        scales=pool.scales,
        starts=seen.starts,
        lengths=seen.lengths,
        table=seen.table,
        scale=scale,
        window=seen.window or 0,
        softcap=softcap,
        sinks=sinks,
    )
    return out


def attend_few(
    q: mx.array, at: Place, *, scale: float, softcap: float = 0.0, sinks: mx.array | None = None
) -> mx.array:
    """`attend` by the kernel that is made for few rows of each sequence, and takes any number."""
    out, at.storage.mark = attend_kernel.attend(
        q,
        _pool(at),
        _seen(at),
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        threadgroups=here.threadgroups,
    )
    return out


def _suits_matrices(q: mx.array, pool: Pool, seen: Seen) -> bool:
    """Whether the rows of a sequence fill tiles of the kernel that multiplies matrices, and heads suit it.

    Fewer rows would leave most of a large GPU without work: a tile walks over all keys alone.
    """
    _, heads, d = q.shape
    _, groups, _, dv = pool.values.shape
    fills = seen.rows * (heads // groups) >= FILLED * QUERY_ROWS
    return fills and all(size % 8 == 0 and size <= MOST for size in (d, dv))


def _pool(at: Place) -> Pool:
    held = at.storage
    scales = None if held.key_scales is None else (held.key_scales, held.value_scales)
    return Pool(held.keys, held.values, scales, held.mark)


def _seen(at: Place) -> Seen:
    """Made once for all layers of a window group."""
    batch, window = at.batch, at.storage.kv.window
    key = "seen", id(at.paging)
    found: Seen | None = batch.shared.get(key)
    if found is None:
        found = batch.shared[key] = Seen(
            batch.mlx_starts,
            batch.mlx_lengths,
            at.paging.mlx_table,
            window,
            rows=int((batch.starts[1:] - batch.starts[:-1]).max()),
            longest=int(batch.lengths.max()),
        )
    return found
