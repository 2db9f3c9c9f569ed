"""Q6_K: 256 weights in 210 bytes, 16 groups of 16, w = d s (q - 32)."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, bit_fields, per_group


class Q6_K(Block, id=14, weights=256):
    """
    byte   0 ...... 127 | 128 ... 191 | 192 ... 207 | 208 209
           ql           | qh          | scales, i8  | d
    ql: two halves of 64 bytes; byte i of half h = q[128 h + 64 + i] & 15 << 4 | q[128 h + i] & 15
    qh: two halves of 32 bytes; bits 2 j .. 2 j + 1 of byte i in half h = q[128 h + 32 j + i] >> 4
    """

    fields = {"ql": ("u8", 128), "qh": ("u8", 64), "scales": ("i8", 16), "d": ("f16", 1)}
    limit = 31 * 127 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        low = bit_fields(block.ql.reshape(-1, 2, 64), bits=4, shifts=(0, 4)).reshape(-1, 8, 32)
        high = bit_fields(block.qh.reshape(-1, 2, 32), bits=2, shifts=(0, 2, 4, 6))
        scale = block.d * block.scales.astype(mx.float32)
        q = (low | (high << 4)).astype(mx.float32) - 32
        return per_group(scale, q).reshape(-1, cls.weights)
