"""Q8_0: 32 weights in 34 bytes, w = d q."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block


class Q8_0(Block, id=8, weights=32):
    """
    byte   0  1 | 2 ............ 33
           d    | q, signed
    """

    fields = {"d": ("f16", 1), "q": ("i8", 32)}
    limit = 127 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.d * block.q.astype(mx.float32)
