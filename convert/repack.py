"""GGUF blocks as the codes, scales and biases of MLX, and back, without rounding.

A block of 32 weights with one scale (and one bias) is a group of MLX's affine quantization: w = d (q - 8) has the
scale d and the bias -8 d. Blocks of K types are eight such groups whose scales are products, exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlx_ferrum.blocks import MXFP4, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q8_0, Block
from mlx_ferrum.tensor import QTensor

from .affine import Rows

GROUP = 32
MIDDLE: dict[type[Block], int] = {Q4_0: 8, Q5_0: 16, Q8_0: 128}  # the code of a weight of 0
BITS: dict[type[Block], int] = {Q4_0: 4, Q4_1: 4, Q5_0: 5, Q5_1: 5, Q8_0: 8, Q4_K: 4, Q5_K: 5}
_TYPES = {"u8": "u1", "i8": "i1", "u32": "<u4", "f16": "<f2"}


def rows(block: type[Block], raw: np.ndarray) -> Rows:
    """raw: (n, row bytes) uint8 of a type in BITS -> codes in groups of 32"""
    b = fields(block, raw)
    d = b["d"].astype(np.float32)
    if block in (Q4_K, Q5_K):
        codes, scales, biases = _k_codes(block, b)
    else:
        codes, scales = _CODES[block](b), d
        biases = b["m"].astype(np.float32) if "m" in block.fields else -d * MIDDLE[block]
    n = len(raw)
    return Rows(codes.reshape(n, -1), scales.reshape(n, -1), biases.reshape(n, -1))


def blocks(block: type[Block], found: Rows) -> np.ndarray:
    """The inverse of `rows` for types with one scale a block: (n, row bytes) uint8.

    Scales, and biases of types that have them, must be float16 values.
    """
    n, k = found.codes.shape
    out = np.empty(n * k // GROUP, _dtype(block))
    codes = found.codes.reshape(-1, GROUP)
    out["d"] = found.scales.reshape(-1, 1)
    if "m" in block.fields:
        out["m"] = found.biases.reshape(-1, 1)
    if block is Q8_0:
        out["q"] = (codes ^ 128).view(np.int8)
    else:
        out["qs"] = _halves(codes & 15)
    if "qh" in block.fields:
        out["qh"] = np.packbits(codes >> 4, axis=-1, bitorder="little").view("<u4")
    return out.view(np.uint8).reshape(n, -1)


def mxfp4_rows(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """raw: (n, row bytes) of MXFP4 -> codes (n, k), exponents (n, k / 32), uint8"""
    b = fields(MXFP4, raw)
    return _nibbles(b["qs"]).reshape(len(raw), -1), b["e"].reshape(len(raw), -1)


def mxfp4_blocks(codes: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """The inverse of `mxfp4_rows`."""
    out = np.empty(exponents.size, _dtype(MXFP4))
    out["e"], out["qs"] = exponents.reshape(-1, 1), _halves(codes.reshape(-1, GROUP))
    return out.view(np.uint8).reshape(len(codes), -1)


def decoded(block: type[Block], raw: np.ndarray) -> np.ndarray:
    """raw: (n, row bytes) uint8 of any type -> (n, k) float32"""
    from mlx_ferrum.backends import cpu  # compiles when first used

    shape = (len(raw), raw.shape[1] // block.bytes * block.weights)
    return cpu.dequantize(QTensor(block, shape, np.ascontiguousarray(raw).reshape(-1), 0))


def fields(block: type[Block], raw: np.ndarray) -> np.ndarray:
    """raw: (n, row bytes) -> (blocks,), one field an entry of `block.fields`"""
    return np.ascontiguousarray(raw).reshape(-1, block.bytes).view(_dtype(block))[:, 0]


def _dtype(block: type[Block]) -> np.dtype:
    return np.dtype([(name, _TYPES[kind], (n,)) for name, (kind, n) in block.fields.items()])


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """(n, 16) -> (n, 32): all low nibbles, then all high ones"""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _halves(codes: np.ndarray) -> np.ndarray:
    """The inverse of `_nibbles`."""
    return codes[:, :16] | codes[:, 16:] << 4


def _five_bits(b: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(b["qh"]).view(np.uint8)
    high = np.unpackbits(bits, axis=-1, bitorder="little")
    return _nibbles(b["qs"]) | high << 4


def _k_codes(block: type[Block], b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (blocks, 256), scales and biases (blocks, 8); the layout is drawn in blocks/q4_k.py."""
    s, m, low = b["scales"][:, :4], b["scales"][:, 4:8], b["scales"][:, 8:]
    scales = np.concatenate([s & 63, low & 15 | s >> 6 << 4], axis=-1)
    minimums = np.concatenate([m & 63, low >> 4 | m >> 6 << 4], axis=-1)
    runs = b["qs"].reshape(-1, 4, 1, 32)
    codes = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)
    if block is Q5_K:
        codes |= (b["qh"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    d, dmin = b["d"].astype(np.float32), b["dmin"].astype(np.float32)
    return codes, d * scales, -dmin * minimums


_CODES: dict[type[Block], Callable[[np.ndarray], np.ndarray]] = {
    Q4_0: lambda b: _nibbles(b["qs"]),
    Q4_1: lambda b: _nibbles(b["qs"]),
    Q5_0: _five_bits,
    Q5_1: _five_bits,
    Q8_0: lambda b: b["q"].view(np.uint8) ^ 128,
}
