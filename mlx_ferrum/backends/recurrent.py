"""The definition of what recurrent layers do: row by row, as the equations are written.

Gated delta rule: Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv:2412.06464.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import mlx.core as mx
from mlx import nn

from ..batch import RecurrentPlace
from ..options import Delta


def _sequences(at: RecurrentPlace) -> Iterator[tuple[slice, int, int]]:
    """For each sequence of the batch its rows, the slot of its state before them, -1 for zeros, and after them."""
    starts = at.batch.starts.tolist()
    places = zip(at.slots.sources.tolist(), at.slots.targets.tolist(), strict=True)
    for i, (source, target) in enumerate(places):
        yield slice(starts[i], starts[i + 1]), source, target


def short_conv(x: mx.array, weight: mx.array, at: RecurrentPlace) -> mx.array:
    held, columns, out = at.storage, at.storage.kind.columns, []
    for rows, source, target in _sequences(at):
        new = x[rows].astype(mx.float32)
        before = mx.zeros((columns, x.shape[1])) if source < 0 else held.columns[source]
        inputs = mx.concatenate([before, new])
        held.columns[target] = inputs[len(inputs) - columns :]
        terms = (weight[:, j] * inputs[j : j + len(new)] for j in range(columns + 1))
        out.append(nn.silu(sum(terms, mx.zeros(new.shape))))
    return _with(mx.concatenate(out), held.columns)


def gated_delta(
    qkv: mx.array, a: mx.array, b: mx.array, at: RecurrentPlace, delta: Delta
) -> mx.array:
    held, kind, keys = at.storage, at.storage.kind, delta.key_heads
    wide = keys * kind.size
    q, k, v = (
        x.reshape(len(x), -1, kind.size).astype(mx.float32)
        for x in mx.split(qkv, [wide, 2 * wide], axis=1)
    )
    heads = mx.arange(kind.heads)
    key_head = heads % keys if delta.is_tiled else heads // (kind.heads // keys)
    q = _unit(q, delta.eps)[:, key_head] / math.sqrt(kind.size)  # (n, h, s)
    k = _unit(k, delta.eps)[:, key_head]
    decay = mx.exp(nn.softplus(a.astype(mx.float32) + delta.dt) * delta.decay)  # (n, h)
    beta = mx.sigmoid(b.astype(mx.float32))
    out = []
    for rows, source, target in _sequences(at):
        shape = kind.heads, kind.size, kind.size
        state = mx.zeros(shape) if source < 0 else held.matrices[source]
        for t in range(rows.start, rows.stop):
            state = decay[t, :, None, None] * state
            error = beta[t, :, None] * (v[t] - _transposed_times(state, k[t]))
            state = state + k[t, :, :, None] * error[:, None, :]
            out.append(_transposed_times(state, q[t]))
        held.matrices[target] = state
    return _with(mx.stack(out), held.matrices)


def _with(x: mx.array, state: mx.array) -> mx.array:
    """x, which is not evaluated without the state: no result of this pass reads what it stored."""
    (out,) = mx.depends([x], [state])
    return out


def _unit(x: mx.array, eps: float) -> mx.array:
    """Each head divided by its length: x: (n, h, s)."""
    return x * mx.rsqrt((x * x).sum(axis=-1, keepdims=True) + eps)


def _transposed_times(state: mx.array, x: mx.array) -> mx.array:
    """Mᵀ x of each head: state: (h, s, s), x: (h, s) -> (h, s)"""
    return (state * x[:, :, None]).sum(axis=1)


def gated_norm(x: mx.array, weight: mx.array, eps: float, gate: mx.array) -> mx.array:
    normed = mx.fast.rms_norm(x.astype(mx.float32), weight, eps)
    return normed.reshape(gate.shape) * nn.silu(gate.astype(mx.float32))


def gate(x: mx.array, pairs: mx.array) -> mx.array:
    return x * mx.sigmoid(pairs[..., x.shape[-1] :].astype(mx.float32))
