"""Q5_K: 256 weights in 176 bytes, 8 groups of 32, w = d s q - dmin m."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block, bit_fields, per_group
from .q4_k import scales_and_mins


class Q5_K(Block, id=13, weights=256):
    """
    byte   0  1 | 2  3 | 4 ..... 15 | 16 ..... 47 | 48 ............ 175
           d    | dmin | scales     | qh          | qs
    qs and scales as in Q4_K; bit g of qh[i] = q[32 g + i] >> 4
    """

    fields = {
        "d": ("f16", 1),
        "dmin": ("f16", 1),
        "scales": ("u8", 12),
        "qh": ("u8", 32),
        "qs": ("u8", 128),
    }
    limit = 63 * HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        scales, minimums = scales_and_mins(block.scales)
        low = bit_fields(block.qs.reshape(-1, 4, 32), bits=4, shifts=(0, 4))
        high = bit_fields(block.qh[:, None], bits=1, shifts=tuple(range(8)))
        weights = per_group(block.d * scales, low | (high << 4))
        return (weights - (block.dmin * minimums)[:, :, None]).reshape(-1, cls.weights)
