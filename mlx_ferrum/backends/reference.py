"""The definition of every operation: pure mx, float32, nothing clever. Other backends are held to it.

Weights are expanded a tile of rows at a time and forgotten, so that a 262,144-row embedding never
becomes one float32 matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from ..ops import Activation
from ..tensor import QTensor

LAZY = True
TILE_WEIGHTS = 1 << 20
_ACTIVATIONS = {"silu": nn.silu, "gelu": nn.gelu_approx}


def prepare(threads: int | None) -> None:
    """Nothing to prepare."""


def matmul(
    x: mx.array, w: QTensor, *, bias: mx.array | None = None, add: mx.array | None = None
) -> mx.array:
    k = w.shape[-1]
    if len(w.shape) != 2 or x.shape[-1] != k:
        raise ValueError(f"matmul: x of shape {x.shape} does not fit {w}")
    flat = x.reshape(-1, k).astype(mx.float32)
    step = max(1, TILE_WEIGHTS // k)
    out = []
    for start in range(0, w.rows, step):
        weights = w.block.dequantize(w.tile(start, min(start + step, w.rows)))
        out.append(flat @ weights.T)
        mx.eval(out[-1])
    product = mx.concatenate(out, axis=-1).reshape(*x.shape[:-1], w.rows)
    if bias is not None:
        product = product + bias
    return product if add is None else product + add


def matmuls(
    x: mx.array, ws: Sequence[QTensor], biases: Sequence[mx.array | None] | None = None
) -> list[mx.array]:
    return [matmul(x, w, bias=bias) for w, bias in zip(ws, biases or [None] * len(ws), strict=True)]


def gate_up(x: mx.array, gate: QTensor, up: QTensor, act: Activation) -> mx.array:
    return _ACTIVATIONS[act](matmul(x, gate)) * matmul(x, up)


def rows(w: QTensor, ids: mx.array, scale: float = 1.0) -> mx.array:
    found = w.block.dequantize(w.take(ids))
    return found if scale == 1 else found * scale


def dequantize(w: QTensor) -> mx.array:
    return w.block.dequantize(w.tile(0, w.rows)).reshape(w.shape)


def cache_dtype(x: mx.array) -> mx.Dtype:
    return x.dtype


def put(stored: mx.array, at: int, new: mx.array) -> mx.array:
    stored[:, :, at : at + new.shape[2]] = new
    return stored


def attend(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, window: int | None = None
) -> mx.array:
    b, h, length, d = q.shape
    groups, held = k.shape[1:3]
    grouped = q.reshape(b, groups, h // groups, length, d).astype(mx.float32)
    scores = (grouped * scale) @ k[:, :, None].swapaxes(-1, -2)
    behind = mx.arange(held - length, held)[:, None] - mx.arange(held)
    seen = behind >= 0
    if window is not None:
        seen = seen & (behind < window)
    weights = mx.softmax(mx.where(seen, scores, -mx.inf), axis=-1)
    return (weights @ v[:, :, None]).reshape(b, h, length, -1)


def rms_norm(x: mx.array, weight: mx.array, eps: float, *, add: mx.array | None = None) -> mx.array:
    normed = mx.fast.rms_norm(x, weight, eps)
    return normed if add is None else normed + add


def norm_rope(
    x: mx.array,
    frequencies: mx.array,
    *,
    offset: int | mx.array,
    interleaved: bool,
    magnitude: float = 1.0,
    norm: tuple[mx.array, float] | None = None,
) -> mx.array:
    length = x.shape[1]
    if norm is not None:
        x = rms_norm(x, *norm)
    x = x.swapaxes(1, 2)  # (b, h, l, d)
    positions = mx.array(offset).reshape(-1, 1) + mx.arange(length)  # (b or 1, l)
    angles = positions[:, None, :, None].astype(mx.float32) * frequencies
    cos, sin = mx.cos(angles) * magnitude, mx.sin(angles) * magnitude
    n = frequencies.size
    rotated, rest = x[..., : 2 * n], x[..., 2 * n :]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated[..., :n], rotated[..., n:]
    pair = [first * cos - second * sin, first * sin + second * cos]
    out = mx.stack(pair, axis=-1) if interleaved else mx.concatenate(pair, axis=-1)
    return mx.concatenate([out.reshape(rotated.shape), rest], axis=-1)


def to_mlx(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


def stepper(
    body: Callable[[mx.array, Any], mx.array], cache: Any
) -> Callable[[mx.array], mx.array]:
    return lambda tokens: body(tokens, cache)
