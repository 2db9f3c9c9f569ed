"""Q4_1: 32 weights in 20 bytes, w = d q + m."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, halves


class Q4_1(Block, id=3, weights=32):
    """
    byte   0  1 | 2  3 | 4 ............ 19
           d    | m    | qs
    qs[i] = q[i + 16] << 4 | q[i]
    """

    fields = {"d": ("f16", 1), "m": ("f16", 1), "qs": ("u8", 16)}
    limit = HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.d * halves(block.qs).astype(mx.float32) + block.m
