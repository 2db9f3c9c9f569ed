"""Q5_1: 32 weights in 24 bytes, w = d q + m."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block
from .q5_0 import with_fifth_bit


class Q5_1(Block, id=7, weights=32):
    """
    byte   0  1 | 2  3 | 4 .. 7 | 8 ............ 23
           d    | m    | qh     | qs
    qs[i] = q[i + 16] & 15 << 4 | q[i] & 15      bit i of qh = q[i] >> 4
    """

    fields = {"d": ("f16", 1), "m": ("f16", 1), "qh": ("u32", 1), "qs": ("u8", 16)}
    limit = HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.d * with_fifth_bit(block.qs, block.qh) + block.m
