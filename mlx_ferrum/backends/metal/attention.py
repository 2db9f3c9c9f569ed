"""Attention on a GPU: keys and values in blocks, which launches write and read where they lie."""

from __future__ import annotations

import mlx.core as mx

from ...batch import Place
from ...kernels import append as append_kernel
from ...kernels import attend as attend_kernel
from ...kernels.append import Pool
from ...kernels.attend import Seen
from ...options import HeadNorms


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
    out, at.storage.mark = _attend(q, _pool(at), _seen(at), scale, softcap, sinks)
    return out


def _attend(
    q: mx.array, pool: Pool, seen: Seen, scale: float, softcap: float, sinks: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Which kernel takes a batch: one serves all."""
    return attend_kernel.attend(q, pool, seen, scale=scale, softcap=softcap, sinks=sinks)


def _pool(at: Place) -> Pool:
    held = at.storage
    scales = () if held.key_scales is None else (held.key_scales, held.value_scales)
    return Pool(held.keys, held.values, scales, held.mark)


def _seen(at: Place) -> Seen:
    batch = at.batch
    return Seen(
        batch.mlx_starts,
        batch.mlx_lengths,
        at.paging.mlx_table,
        at.storage.kv.window,
        rows=int((batch.starts[1:] - batch.starts[:-1]).max()),
        longest=int(batch.lengths.max()),
    )
