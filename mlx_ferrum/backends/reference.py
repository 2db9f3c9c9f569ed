"""The definition of every operation: pure mx, float32, nothing clever. Other backends are held to it.

Weights are expanded a tile of rows at a time and forgotten, so that a 262,144-row embedding never
becomes one float32 matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx
import numpy as np
from mlx import nn

from ..batch import Batch, Place
from ..options import Activation, HeadNorms, Norm, Routing
from ..tensor import QTensor
from . import paged
from .recurrent import gate as gate
from .recurrent import gated_delta as gated_delta
from .recurrent import gated_norm as gated_norm
from .recurrent import short_conv as short_conv

T = TypeVar("T")
LAZY = True
TILE_WEIGHTS = 1 << 20
LEAST_SUM = 1e-20  # of weights that are divided by it; sigmoids can all be 0
ACTIVATIONS: dict[Activation, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "gelu": nn.gelu_approx,
}


def prepare(threads: int | None) -> None:
    """Nothing to prepare."""


def place(tensors: Sequence[QTensor]) -> None:
    """Weights are read in the file."""


def wired_limit() -> None:
    """Weights are copied out of the file a tile at a time."""


def matmul(
    x: mx.array, w: QTensor, *, bias: mx.array | None = None, add: mx.array | None = None
) -> mx.array:
    k = w.shape[-1]
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
    x: mx.array,
    ws: Sequence[QTensor],
    biases: Sequence[mx.array | None] | None = None,
    *,
    norm: Norm | None = None,
) -> list[mx.array]:
    x = _normed(x, norm)
    return [matmul(x, w, bias=bias) for w, bias in zip(ws, biases or [None] * len(ws), strict=True)]


def gate_up(
    x: mx.array,
    gate: QTensor,
    up: QTensor,
    act: Activation,
    *,
    biases: Sequence[mx.array | None] | None = None,
    norm: Norm | None = None,
) -> mx.array:
    gated, raised = matmuls(x, [gate, up], biases, norm=norm)
    return ACTIVATIONS[act](gated) * raised


def norm_matmul(x: mx.array, w: QTensor, norm: Norm) -> tuple[mx.array, mx.array]:
    x = _normed(x, norm)
    return x, matmul(x, w)


def _normed(x: mx.array, norm: Norm | None) -> mx.array:
    return x if norm is None else rms_norm(x, *norm)


def rows(w: QTensor, ids: mx.array | np.ndarray, scale: float = 1.0) -> mx.array:
    found = w.block.dequantize(w.take(mx.array(ids)))
    return found if scale == 1 else found * scale


def dequantize(w: QTensor) -> mx.array:
    return w.block.dequantize(w.tile(0, w.rows)).reshape(w.shape)


def allocate(shape: tuple[int, ...], bits: int) -> mx.array:
    return mx.zeros(shape, mx.int8 if bits == 8 else mx.float32)


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
    q = q[..., : k.shape[-1]]  # a gate may follow
    if norms is not None:
        q_weight, k_weight, eps = norms
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
    angles = at.batch.mlx_positions[:, None, None].astype(mx.float32) * frequencies  # (n, 1, m)
    turn = mx.cos(angles) * magnitude, mx.sin(angles) * magnitude
    paged.store(at, _turned(k, *turn, interleaved), v)
    return _turned(q, *turn, interleaved)


def _turned(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool) -> mx.array:
    """The first values of x: (n, heads, d) by angles: (n, 1, m)."""
    m = cos.shape[-1]
    rotated, rest = x[..., : 2 * m], x[..., 2 * m :]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated[..., :m], rotated[..., m:]
    pair = [first * cos - second * sin, first * sin + second * cos]
    out = mx.stack(pair, axis=-1) if interleaved else mx.concatenate(pair, axis=-1)
    return mx.concatenate([out.reshape(rotated.shape), rest], axis=-1)


def attend(
    q: mx.array, at: Place, *, scale: float, softcap: float = 0.0, sinks: mx.array | None = None
) -> mx.array:
    out = [_attend(q[past.rows], past, scale, softcap, sinks) for past in paged.pasts(at)]
    return mx.concatenate(out)


def _attend(
    q: mx.array, past: paged.Past, scale: float, cap: float, sinks: mx.array | None
) -> mx.array:
    """One sequence: q: (l, h, d) -> (l, h, dv)"""
    length, h, d = q.shape
    groups = past.keys.shape[0]
    grouped = q.astype(mx.float32).swapaxes(0, 1).reshape(groups, -1, length, d)
    scores = (grouped * scale) @ past.keys[:, None].swapaxes(-1, -2)  # (g, h / g, l, s)
    if cap:
        scores = softcap(scores, cap)
    scores = mx.where(past.seen, scores, -mx.inf)
    if sinks is not None:
        sink = mx.broadcast_to(sinks.reshape(groups, -1, 1, 1), (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, sink], axis=-1)
    weights = mx.softmax(scores, axis=-1)[..., : past.keys.shape[1]]
    return (weights @ past.values[:, None]).reshape(h, length, -1).swapaxes(0, 1)


def attend_both_ways(
    q: mx.array, k: mx.array, v: mx.array, lengths: list[int], *, scale: float
) -> mx.array:
    seen = mx.arange(k.shape[2]) < mx.array(lengths)[:, None, None, None]
    scores = (q * scale) @ k.swapaxes(-1, -2)
    return mx.softmax(mx.where(seen, scores, -mx.inf), axis=-1) @ v


def gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x * math.sqrt(0.5))) / 2


def rms_norm(x: mx.array, weight: mx.array, eps: float, *, add: mx.array | None = None) -> mx.array:
    normed = mx.fast.rms_norm(x, weight, eps)
    return normed if add is None else normed + add


def softcap(x: mx.array, cap: float) -> mx.array:
    return mx.tanh(x / cap) * cap


def choose(logits: mx.array) -> tuple[mx.array, mx.array]:
    ranges = mx.stack([logits.min(axis=-1), logits.max(axis=-1)], axis=-1)
    has_nan = mx.isnan(logits).any(axis=-1, keepdims=True)
    return mx.argmax(logits, axis=-1).astype(mx.int32), mx.where(has_nan, mx.nan, ranges)


def mask_logits(logits: mx.array, bits: mx.array) -> mx.array:
    tokens = mx.arange(logits.shape[-1])
    allowed = (bits[:, tokens // 32] >> (tokens % 32)) & 1
    return mx.where(allowed == 1, logits.astype(mx.float32), -mx.inf)


def route(
    logits: mx.array, routing: Routing, *, bias: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    logits = logits.astype(mx.float32)
    softmax = routing.gating == "softmax"
    scores = mx.softmax(logits, axis=-1) if softmax else mx.sigmoid(logits)
    # softmax keeps the order, and logits are finer; groups are compared by sums, which it changes
    chosen_by = logits if softmax and bias is None and routing.groups == 1 else scores
    if bias is not None:
        chosen_by = chosen_by + bias
    chosen_by = mx.where(mx.isnan(chosen_by), -mx.inf, chosen_by)
    if routing.groups > 1:
        chosen_by = _best_groups(chosen_by, routing)
    ids = _best(chosen_by, routing.used)
    weights = mx.take_along_axis(scores, ids, axis=-1)
    if routing.normalise:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + LEAST_SUM)
    return ids, weights * routing.scale


def _best(scores: mx.array, n: int) -> mx.array:
    """The last axis' n highest, highest first; argsort is stable, so the lower of equal ones comes first."""
    return mx.argsort(-scores, axis=-1)[..., :n].astype(mx.int32)


def _best_groups(scores: mx.array, routing: Routing) -> mx.array:
    """scores: (..., e), -inf outside the best groups."""
    grouped = scores.reshape(*scores.shape[:-1], routing.groups, -1)
    two = mx.take_along_axis(grouped, _best(grouped, 2), axis=-1)
    best = _best(two.sum(axis=-1), routing.groups_used)
    is_best = (mx.arange(routing.groups)[:, None] == best[..., None, :]).any(axis=-1)
    return mx.where(is_best[..., None], grouped, -mx.inf).reshape(scores.shape)


def gather_matmul(
    x: mx.array, w: QTensor, ids: mx.array, *, bias: mx.array | None = None
) -> mx.array:
    n = ids.shape[-1]
    spread = mx.broadcast_to(x[..., None, :], (*x.shape[:-1], n, x.shape[-1]))
    return _each(spread, w, ids, bias)


def _each(x: mx.array, w: QTensor, ids: mx.array, bias: mx.array | None = None) -> mx.array:
    """Each row by its own expert: x: (..., n, k), ids: (..., n) -> (..., n, rows)"""
    experts, rows, k = w.shape
    flat, experts_of = x.reshape(-1, k), np.asarray(ids).reshape(-1)
    if experts_of.size and not 0 <= experts_of.min() <= experts_of.max() < experts:
        raise ValueError(f"{w}: expert ids lie between 0 and {experts - 1}, found {experts_of}")
    out = mx.zeros((flat.shape[0], rows))
    for expert in np.unique(experts_of).tolist():
        mine = mx.array(np.flatnonzero(experts_of == expert))
        out[mine] = matmul(
            flat[mine], w.matrix(expert), bias=None if bias is None else bias[expert]
        )
    return out.reshape(*ids.shape, rows)


def gather_gate_up(
    x: mx.array, gate: QTensor, up: QTensor, ids: mx.array, act: Activation
) -> mx.array:
    return ACTIVATIONS[act](gather_matmul(x, gate, ids)) * gather_matmul(x, up, ids)


def gather_down(
    x: mx.array, w: QTensor, ids: mx.array, weights: mx.array, *, add: mx.array | None = None
) -> mx.array:
    total = (_each(x, w, ids) * weights[..., None]).sum(axis=-2)
    return total if add is None else total + add


def sigmoid_gate(x: mx.array, gate: mx.array, *, add: mx.array | None = None) -> mx.array:
    gated = x * mx.sigmoid(gate)
    return gated if add is None else gated + add


def to_mlx(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


def repeated(run: Callable[[Batch], T]) -> Callable[[Batch], T]:
    return run
