"""The operations of recurrent layers in float64, a row at a time, as their equations are written."""

from __future__ import annotations

import numpy as np

F64 = np.float64


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def short_conv(
    x: np.ndarray, weight: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of one sequence: x (n, C), weight (C, K), held (K - 1, C) raw columns before x -> (n, C), and those after it."""
    columns = np.concatenate([held, x])
    taps = weight.shape[1]
    sums = [(columns[t : t + taps] * weight.T).sum(0) for t in range(len(x))]
    return silu(np.array(sums).reshape(x.shape)), columns[len(x) :]


def gated_delta(
    qkv: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    held: np.ndarray,
    *,
    decay: np.ndarray,
    dt: np.ndarray,
    eps: float,
    tiled: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Of one sequence: qkv (n, C), a, b (n, Hv), held (Hv, S, S) -> o (n, Hv, S), and the matrices after it."""
    (n, heads), size = a.shape, held.shape[1]
    key_heads = (qkv.shape[1] // size - heads) // 2
    q, k, v = np.split(qkv.reshape(n, -1, size), [key_heads, 2 * key_heads], axis=1)
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + eps) for x in (q, k))
    repeats = heads // key_heads
    spread = (lambda x: np.tile(x, (1, repeats, 1))) if tiled else (lambda x: x.repeat(repeats, 1))
    q, k = spread(q) / np.sqrt(size), spread(k)
    beta, g = sigmoid(b), np.exp(decay * np.logaddexp(0, a + dt))
    m, o = held.copy(), np.zeros((n, heads, size))
    for t in range(n):
        m *= g[t, :, None, None]
        d = beta[t, :, None] * (v[t] - np.einsum("hij,hi->hj", m, k[t]))
        m += k[t, :, :, None] * d[:, None]
        o[t] = np.einsum("hij,hi->hj", m, q[t])
    return o, m


def gated_norm(x: np.ndarray, weight: np.ndarray, eps: float, gate: np.ndarray) -> np.ndarray:
    """x (n, h, d), weight (d,), gate (n, h d) -> (n, h d)"""
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return normed.reshape(gate.shape) * silu(gate)
