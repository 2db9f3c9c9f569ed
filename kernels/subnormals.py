"""subnormals: whether a GPU computes with subnormal halves, in one tiny launch that is waited for."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_ferrum.launch import Kernel

# In the ways in which the decoders do: as scales that are loaded or made of bits, and as factors of a multiply-add.
BODY = """
    uint i = thread_position_in_grid.x;
    half2 pair = as_type<half2>(uint(bits[i]) << 16 | bits[i]);
    loaded[i] = float(((const device half*)bits)[i]);
    added[i] = fma(float(pair.x), factors[i], fma(float(pair.y), factors[i], 0.0f));
"""
_BITS = (1, 2, 0x155, 0x200, 0x3FF, 0x8001, 0x82AA, 0x83FF)  # subnormal halves
_FACTOR = 4096.0


def are_kept() -> bool:
    """Whether products and conversions of subnormal halves are exact."""
    halves = np.array(_BITS, np.uint16)
    numbers = halves.view(np.float16).astype(np.float32)
    loaded, added = _KERNEL(
        [mx.array(halves), mx.full(len(_BITS), _FACTOR)],
        grid=(len(_BITS), 1, 1),
        threadgroup=(len(_BITS), 1, 1),
        output_shapes=[(len(_BITS),)] * 2,
        output_dtypes=[mx.float32] * 2,
    )
    is_exact = np.array(loaded) == numbers, np.array(added) == 2 * _FACTOR * numbers
    return bool(np.all(is_exact))


_KERNEL = Kernel("subnormals", BODY, ("bits", "factors"), ("loaded", "added"))
