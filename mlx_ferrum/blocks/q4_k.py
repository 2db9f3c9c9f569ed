"""Q4_K: 256 weights in 144 bytes, 8 groups of 32, w = d s q - dmin m."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, bit_fields, per_group


def scales_and_mins(packed: mx.array) -> tuple[mx.array, mx.array]:
    """packed: (n, 12) uint8 -> scales, minimums: (n, 8) float32 in 0..63.

    byte 0..3: s[i + 4] top bits << 6 | s[i]         (i = 0..3)
    byte 4..7: m[i + 4] top bits << 6 | m[i]
    byte 8..11: m[i + 4] low nibble << 4 | s[i + 4] low nibble
    """
    s, m, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = mx.concatenate([s & 63, (low & 15) | ((s >> 6) << 4)], axis=-1)
    minimums = mx.concatenate([m & 63, (low >> 4) | ((m >> 6) << 4)], axis=-1)
    return scales.astype(mx.float32), minimums.astype(mx.float32)


class Q4_K(Block, id=12, weights=256):
    """
    byte   0  1 | 2  3 | 4 ..... 15 | 16 ............ 143
           d    | dmin | scales     | qs
    qs: four runs of 32 bytes; byte i of run r = q[64 r + 32 + i] << 4 | q[64 r + i]
    """

    fields = {"d": ("f16", 1), "dmin": ("f16", 1), "scales": ("u8", 12), "qs": ("u8", 128)}
    limit = 63 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        scales, minimums = scales_and_mins(block.scales)
        q = bit_fields(block.qs.reshape(-1, 4, 32), bits=4, shifts=(0, 4))
        weights = per_group(block.d * scales, q) - (block.dmin * minimums)[:, :, None]
        return weights.reshape(-1, cls.weights)
