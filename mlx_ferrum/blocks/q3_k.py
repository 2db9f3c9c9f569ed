"""Q3_K: 256 weights in 110 bytes, 16 groups of 16, w = d (s - 32) (q - 4)."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, bit_fields, per_group


class Q3_K(Block, id=11, weights=256):
    """
    byte   0 ...... 31 | 32 ...... 95 | 96 .... 107 | 108 109
           hmask       | qs           | scales      | d
    qs: two halves of 32 bytes; bits 2 j .. 2 j + 1 of byte i in half h: the low bits of weight 128 h + 32 j + i
    hmask: bit 4 h + j of byte i: the third bit of the same weight
    scales, 6 bits each: low nibbles of s[0..7] then high nibbles = s[8..15] low bits in bytes 0..7;
                         bits 2 j .. 2 j + 1 of byte 8 + i: the top bits of s[4 j + i]
    """

    fields = {"hmask": ("u8", 32), "qs": ("u8", 64), "scales": ("u8", 12), "d": ("f16", 1)}
    limit = 3 * 31 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        low = bit_fields(block.scales[:, None, :8], bits=4, shifts=(0, 4)).reshape(-1, 16)
        top = bit_fields(block.scales[:, None, 8:], bits=2, shifts=(0, 2, 4, 6)).reshape(-1, 16)
        scale = block.d * ((low | (top << 4)).astype(mx.float32) - 32)
        q = bit_fields(block.qs.reshape(-1, 2, 32), bits=2, shifts=(0, 2, 4, 6))
        high = bit_fields(block.hmask[:, None], bits=1, shifts=tuple(range(8)))
        return per_group(scale, (q | (high << 2)).astype(mx.float32) - 4).reshape(-1, cls.weights)
