"""MXFP4: 32 weights in 17 bytes, w = 2^(e - 127) v[q].

E2M1 values under a shared E8M0 exponent (OCP Microscaling Formats v1.0).
"""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import FLOAT_MAX, Block, halves

# Twice the E2M1 values, so that they are whole; the scale is halved to match.
DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


class MXFP4(Block, id=39, weights=32):
    """
    byte   0 | 1 ............ 16
           e | qs
    qs[i] = q[i + 16] << 4 | q[i]
    """

    fields = {"e": ("u8", 1), "qs": ("u8", 16)}
    limit = FLOAT_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        e = block.e.astype(mx.uint32)
        # 2^(e - 128) in bits; the two smallest are subnormal
        bits = mx.where(e < 2, mx.left_shift(mx.array(1 << 21, mx.uint32), e), (e - 1) << 23)
        return bits.view(mx.float32) * mx.array(DOUBLED, dtype=mx.float32)[halves(block.qs)]
