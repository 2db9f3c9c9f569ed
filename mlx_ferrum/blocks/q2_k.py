"""Q2_K: 256 weights in 84 bytes, 16 groups of 16, w = d s q - dmin m."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, bit_fields, per_group


class Q2_K(Block, id=10, weights=256):
    """
    byte   0 ........ 15 | 16 ........ 79 | 80 81 | 82 83
           scales        | qs             | d     | dmin
    scales[g] = m << 4 | s      of group g: weights 16 g .. 16 g + 15
    qs: two halves of 32 bytes; bits 2 j .. 2 j + 1 of byte i in half h hold weight 128 h + 32 j + i
    """

    fields = {"scales": ("u8", 16), "qs": ("u8", 64), "d": ("f16", 1), "dmin": ("f16", 1)}
    limit = 15 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        scale = block.d * (block.scales & 15).astype(mx.float32)
        minimum = block.dmin * (block.scales >> 4).astype(mx.float32)
        q = bit_fields(block.qs.reshape(-1, 2, 32), bits=2, shifts=(0, 2, 4, 6))
        return (per_group(scale, q) - minimum[:, :, None]).reshape(-1, cls.weights)
