"""Random quantized matrices: random bytes whose scales are then set.

So every code of a block type appears, and nothing is rounded to fit. Draws are exact: the same generator
state gives the same bytes on every platform.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import gguf
import numpy as np

TYPES = (
    "Q4_K", "Q6_K", "Q8_0", "F16", "Q5_0", "IQ4_XS", "Q2_K", "Q5_K",
    "BF16", "Q4_1", "MXFP4", "Q3_K", "F32", "IQ4_NL", "Q5_1", "Q4_0",
)  # fmt: skip


class Scales(NamedTuple):
    """Where a block keeps its float16 scale and minimum, and values that give standard deviation 1."""

    scale: int  # byte offset
    unit: float
    minimum: int | None = None  # byte offset
    ratio: float = 0.0  # minimum / scale at which the mean is 0


SCALES = {
    "Q4_0": Scales(0, 0.217),
    "Q4_1": Scales(0, 0.217, 2, -7.5),
    "Q5_0": Scales(0, 0.108),
    "Q5_1": Scales(0, 0.108, 2, -15.5),
    "Q8_0": Scales(0, 0.0135),
    "Q2_K": Scales(80, 0.072, 82, 1.5),
    "Q3_K": Scales(108, 0.0234),
    "Q4_K": Scales(0, 0.0043, 2, 7.5),
    "Q5_K": Scales(0, 0.0021, 2, 15.5),
    "Q6_K": Scales(208, 0.00073),
    "IQ4_NL": Scales(0, 0.0147),
    "IQ4_XS": Scales(0, 0.00079),
}
MXFP4_STD = 2.9  # of the sixteen E2M1 values


class Matrix(NamedTuple):
    """A quantized matrix: `data` (rows, bytes per row) uint8, and the name of its ggml type."""

    type: str
    data: np.ndarray


def matrix(rng: np.random.Generator, type: str, rows: int, k: int) -> Matrix:
    """Draw a (rows, k) matrix of a ggml type with a standard deviation of about 1 / sqrt(k)."""
    std = 1 / math.sqrt(k)
    qtype = gguf.GGMLQuantizationType[type]
    if type in ("F32", "F16", "BF16"):
        values = (rng.uniform(-1, 1, (rows, k)) * (std * 1.732)).astype(np.float32)
        return Matrix(type, gguf.quants.quantize(values, qtype).view(np.uint8).reshape(rows, -1))
    weights, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    if k % weights:
        raise ValueError(f"{type}: k must be a multiple of {weights}, got {k}")
    blocks = rng.integers(0, 256, (rows * k // weights, nbytes), dtype=np.uint8)
    if type == "MXFP4":
        exponent = 127 + round(math.log2(std / MXFP4_STD))
        blocks[:, 0] = rng.integers(exponent - 1, exponent + 2, len(blocks))
    else:
        _set_scales(rng, blocks, SCALES[type], std)
    return Matrix(type, blocks.reshape(rows, -1))


def _set_scales(rng: np.random.Generator, blocks: np.ndarray, at: Scales, std: float) -> None:
    """Give each block its own scale, of either sign; blocks: (n, bytes) uint8, changed in place."""
    factors = rng.integers(2, 7, len(blocks)) * rng.choice([-0.25, 0.25], len(blocks))
    scales = at.unit * std * factors
    blocks[:, at.scale : at.scale + 2] = _float16_bytes(scales)
    if at.minimum is not None:
        blocks[:, at.minimum : at.minimum + 2] = _float16_bytes(scales * at.ratio)


def _float16_bytes(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint8).reshape(-1, 2)
