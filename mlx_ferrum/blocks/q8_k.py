"""Q8_K: 256 weights in 292 bytes, w = d q. llama.cpp keeps activations in it; files rarely hold it."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import Block


class Q8_K(Block, id=15, weights=256):
    """
    byte   0 .. 3 | 4 ........ 259 | 260 ........ 291
           d, f32 | q, signed      | sums of 16 q each, i16: redundant, not read
    """

    fields = {"d": ("f32", 1), "q": ("i8", 256), "sums": ("i16", 16)}
    limit = 2.0**127

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.d * block.q.astype(mx.float32)
