"""Q5_0: 32 weights in 22 bytes, w = d (q - 16)."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, halves


def with_fifth_bit(qs: mx.array, qh: mx.array) -> mx.array:
    """qs: (n, 16) uint8 nibbles, qh: (n, 1) uint32 high bits -> (n, 32) float32 in 0..31."""
    high = (qh >> mx.arange(32, dtype=mx.uint32)) & 1
    return (halves(qs) | (high.astype(mx.uint8) << 4)).astype(mx.float32)


class Q5_0(Block, id=6, weights=32):
    """
    byte   0  1 | 2 .. 5 | 6 ............ 21
           d    | qh     | qs
    qs[i] = q[i + 16] & 15 << 4 | q[i] & 15      bit i of qh = q[i] >> 4
    """

    fields = {"d": ("f16", 1), "qh": ("u32", 1), "qs": ("u8", 16)}
    limit = 16 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.d * (with_fifth_bit(block.qs, block.qh) - 16)
