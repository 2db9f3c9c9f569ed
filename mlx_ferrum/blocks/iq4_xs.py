"""IQ4_XS: 256 weights in 136 bytes, 8 groups of 32, w = d (s - 32) t[q], t as in IQ4_NL."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, bit_fields, per_group
from .iq4_nl import LEVELS


class IQ4_XS(Block, id=23, weights=256):
    """
    byte   0  1 | 2  3     | 4 .. 7   | 8 ............ 135
           d    | scales_h | scales_l | qs
    scales_l[i] = s[2 i + 1] & 15 << 4 | s[2 i] & 15      bits 2 g .. 2 g + 1 of scales_h = s[g] >> 4
    qs: eight runs of 16 bytes; byte i of run g = q[32 g + 16 + i] << 4 | q[32 g + i]
    """

    fields = {"d": ("f16", 1), "scales_h": ("u16", 1), "scales_l": ("u8", 4), "qs": ("u8", 128)}
    limit = 113 * 31 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        low = bit_fields(block.scales_l[:, :, None], bits=4, shifts=(0, 4)).reshape(-1, 8)
        high = (block.scales_h >> mx.arange(0, 16, 2, dtype=mx.uint16)) & 3
        scale = block.d * ((low | (high.astype(mx.uint8) << 4)).astype(mx.float32) - 32)
        q = bit_fields(block.qs.reshape(-1, 8, 16), bits=4, shifts=(0, 4))
        return per_group(scale, mx.array(LEVELS, dtype=mx.float32)[q]).reshape(-1, cls.weights)
