"""What the metal backend asks of shapes, whatever the kernel."""

from __future__ import annotations

import math

import mlx.core as mx

from ...tensor import QTensor
from .thresholds import here

LEAST_WORDS = 8  # MLX hands smaller arrays over as constants; such weights are expanded


def is_tiny(w: QTensor) -> bool:
    """Whether no kernel can take it."""
    return w.words < LEAST_WORDS


def as_rows(x: mx.array) -> mx.array:
    """x: (..., k) -> (n, k), n may be 0; x itself where it has that shape, as a reshape costs the host time."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def like(y: mx.array, x: mx.array) -> mx.array:
    """y: (n, rows), of the rows of x: (..., k) -> (..., rows)"""
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def rows_a_simdgroup(rows: int) -> int:
    """Of `rows` in all, that a matvec is for."""
    return 2 if rows < here.few_rows else 4
