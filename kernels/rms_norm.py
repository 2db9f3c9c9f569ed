"""rms_norm: RMS norm over the last axis, plus a residual."""

from __future__ import annotations

import functools
import math

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant

from .header import header

LANES = 32
MOST = 1024  # threads per threadgroup
BODY = """
    threadgroup float partial[32];
    int d = weight_shape[0], row = threadgroup_position_in_grid.x;
    rms_norm(x + size_t(row) * d, weight, add + size_t(row) * d, y + size_t(row) * d, d, eps[0], partial,
             thread_index_in_threadgroup, threads_per_threadgroup.x);
"""


def rms_norm(x: mx.array, weight: mx.array, eps: float, add: mx.array) -> mx.array:
    """Computes x / sqrt(mean(x²) + eps) * weight + add, in the type of x: x, add: (..., d), weight: (d,) -> (..., d)"""
    d = x.shape[-1]
    if weight.shape != (d,) or add.shape != x.shape:
        raise ValueError(
            f"rms_norm: x of shape {x.shape} does not fit a weight of {weight.shape} and add of {add.shape}"
        )
    (y,) = _call(x.shape, x.dtype)([x, weight, constant(eps), add])
    return y


@functools.lru_cache(KEPT)
def _call(shape: tuple[int, ...], dtype: mx.Dtype) -> Call:
    d = shape[-1]
    threads = min(MOST, LANES * -(-d // (4 * LANES)))
    return _kernel().prepare(
        grid=(threads * math.prod(shape[:-1]), 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[shape],
        output_dtypes=[dtype],
    )


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="rms_norm",
        source=BODY,
        inputs=("x", "weight", "eps", "add"),
        outputs=("y",),
        header=header("rms_norm.metal"),
    )
