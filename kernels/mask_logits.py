"""mask_logits: -inf for the tokens that a bit mask leaves out."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel

from .header import header

THREADS = 64
BODY = """
    int k = logits_shape[1], chunks = (k + 3) / 4, row = thread_position_in_grid.x / chunks;
    int i = 4 * (thread_position_in_grid.x % chunks);
    mask_logits(logits + size_t(row) * k, bits + size_t(row) * bits_shape[1], y + size_t(row) * k, k, i);
"""


def mask_logits(logits: mx.array, bits: mx.array) -> mx.array:
    """logits: (n, k) of a float type, bits: (n, ceil(k / 32)) int32, the lowest bit first -> (n, k) float32"""
    n, k = logits.shape
    (y,) = _kernel()(
        [logits, bits],
        grid=(n * -(-k // 4), 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(n, k)],
        output_dtypes=[mx.float32],
    )
    return y


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="mask_logits",
        source=BODY,
        inputs=("logits", "bits"),
        outputs=("y",),
        header=header("mask_logits.metal"),
    )
