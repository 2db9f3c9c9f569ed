"""Q4_K: 256 weights in 144 bytes, 8 groups of 32, w = d s q - dmin m."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ..lazy import mx
from .base import Block, bit_fields, packed, per_group
from .fit import HALF_MAX, Levels, k_quant


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


def pack_scales_and_mins(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """The inverse of `scales_and_mins`: (n, 8), (n, 8) uint8 in 0..63 -> (n, 12) uint8."""
    tops = [x[:, :4] | (x[:, 4:] >> 4 << 6) for x in (s, m)]
    return np.concatenate([*tops, (m[:, 4:] & 15) << 4 | (s[:, 4:] & 15)], axis=1)


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

    @classmethod
    def encode(cls, x: np.ndarray) -> dict[str, np.ndarray]:
        fit = k_quant(x.reshape(-1, 8, 32), Levels(codes=(0, 15), scales=(0, 63), minimums=(0, 63)))
        s, m, q = (field.astype(np.uint8) for field in (fit.s, fit.m, fit.q))
        scales = pack_scales_and_mins(s, m)
        return {"d": fit.d, "dmin": fit.dmin, "scales": scales, "qs": packed(q, bits=4, fields=2)}
