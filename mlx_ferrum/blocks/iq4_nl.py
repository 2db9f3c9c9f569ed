"""IQ4_NL: 32 weights in 18 bytes, w = d t[q] with a fixed non-linear table t."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, halves

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class IQ4_NL(Block, id=20, weights=32):
    """
    byte   0  1 | 2 ............ 17
           d    | qs
    qs[i] = q[i + 16] << 4 | q[i]
    """

    fields = {"d": ("f16", 1), "qs": ("u8", 16)}
    limit = 113 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.d * mx.array(LEVELS, dtype=mx.float32)[halves(block.qs)]
