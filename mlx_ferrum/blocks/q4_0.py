"""Q4_0: 32 weights in 18 bytes, w = d (q - 8)."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, halves


class Q4_0(Block, id=2, weights=32):
    """
    byte   0  1 | 2 ............ 17
           d    | qs
    qs[i] = q[i + 16] << 4 | q[i]
    """

    fields = {"d": ("f16", 1), "qs": ("u8", 16)}
    limit = 8 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.d * (halves(block.qs).astype(mx.float32) - 8)
