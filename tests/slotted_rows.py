"""Rows of sequences whose recurrent states lie in slots, and in float64 what a gated delta net makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.batch import Batch, RecurrentPlace, Slots
from mlx_ferrum.state.kinds import Recurrent
from mlx_ferrum.state.storage import RecurrentStorage


def place(kind: Recurrent, counts: Sequence[int], *, seed: int = 0) -> RecurrentPlace:
    """Sequences with so many rows each, whose states are random; the first and the last one begin.

    The storage is made by the backend in use, the same for each.
    """
    rng, s = np.random.default_rng(seed), len(counts)
    starts = np.cumsum([0, *counts], dtype=np.int32)
    rows = np.zeros(starts[-1], np.int32)
    batch = Batch([], rows, rows, starts, np.array(counts, np.int32), [], [])
    slots = rng.permutation(2 * s + 1).astype(np.int32)
    sources, targets = slots[:s].copy(), slots[s : 2 * s].copy()
    sources[[0, -1]] = -1
    storage = RecurrentStorage(kind, ops.allocate)
    storage.grow(2 * s + 1)
    for x in storage.arrays:
        drawn = rng.normal(size=x.shape).astype(np.float32)
        x[:] = mx.array(drawn) if isinstance(x, mx.array) else drawn
    return RecurrentPlace(batch, Slots(sources, targets), storage)


def sequences(at: RecurrentPlace) -> Iterator[tuple[slice, int, int]]:
    """Rows, source and target of each sequence."""
    starts = at.batch.starts.tolist()
    for i, (source, target) in enumerate(zip(*(x.tolist() for x in at.slots.arrays), strict=True)):
        yield slice(starts[i], starts[i + 1]), source, target


def held(at: RecurrentPlace) -> list[np.ndarray]:
    """Copies of the columns and of the matrices."""
    return [np.array(x, np.float32) for x in at.storage.arrays]


def convolved(x: np.ndarray, weight: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, Any]:
    """x: (n, c), weight: (c, kernel), before: (kernel - 1, c) -> results, and the last inputs."""
    inputs = np.concatenate([before, x]).astype(np.float64)
    kernel = weight.shape[1]
    sums = np.array([(inputs[t : t + kernel] * weight.T).sum(0) for t in range(len(x))])
    return sums / (1 + np.exp(-sums)), inputs[len(x) :]


def delta(
    qkv: np.ndarray, a: np.ndarray, b: np.ndarray, args: ops.Delta, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """qkv: (n, c), a and b: (n, h), state: (h, s, s) -> results (n, h, s), and the state after the rows."""
    (n, heads), size, keys = a.shape, state.shape[-1], args.key_heads
    q, k, v = (
        x.reshape(n, -1, size).astype(np.float64)
        for x in np.split(qkv, [keys * size, 2 * keys * size], axis=1)
    )
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + args.eps) for x in (q, k))
    of = [h % keys if args.is_tiled else h // (heads // keys) for h in range(heads)]
    decay = np.exp(np.logaddexp(0, a.astype(np.float64) + np.array(args.dt)) * np.array(args.decay))
    beta = 1 / (1 + np.exp(-b.astype(np.float64)))
    state, out = state.astype(np.float64), np.empty((n, heads, size))
    for t in range(n):
        state = state * decay[t, :, None, None]
        change = beta[t, :, None] * (v[t] - np.einsum("hij,hi->hj", state, k[t, of]))
        state += np.einsum("hi,hj->hij", k[t, of], change)
        out[t] = np.einsum("hij,hi->hj", state, q[t, of]) / np.sqrt(size)
    return out, state
