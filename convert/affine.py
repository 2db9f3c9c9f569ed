"""Affine quantization as MLX stores it: w = scale * code + bias, one scale and one bias for each group of a row.

The codes of a row are a stream of bits, the lowest bit of the first code first, in little-endian uint32 words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
REFITS = 3  # least-squares fits of scale and bias, one after the other
FEW = 4  # bits with which it pays to leave out the largest weights
PARTS = (1.0, 0.88, 0.76, 0.64)  # of the range of a group that codes then span
# The float types of MLX models: the name in safetensors files, NumPy's type of the same width.
FLOATS: dict[str, tuple[str, Any]] = {
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", np.uint16),
    "float32": ("F32", np.float32),
}


@dataclass(frozen=True)
class Layout:
    """How a matrix is quantized. mode: "affine", or "mxfp4" with 4 bits in groups of 32."""

    bits: int
    group: int
    mode: str = "affine"

    def __str__(self) -> str:
        return "mxfp4" if self.mode == "mxfp4" else f"{self.bits} bits"

    @property
    def parameters(self) -> dict[str, Any]:
        """As config.json has them."""
        return {"group_size": self.group, "bits": self.bits, "mode": self.mode}

    def words(self, k: int) -> int:
        """The uint32 words of a row of k codes. Raises ValueError unless groups divide the row."""
        if k % self.group:
            raise ValueError(f"a row of {k} weights is not a multiple of a group of {self.group}")
        return k * self.bits // 32


@dataclass(frozen=True)
class Rows:
    """Rows of a quantized matrix. codes: (n, k) uint8; scales, biases: (n, k / group) float32."""

    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """(n, k) float32"""
        groups = self.codes.reshape(*self.scales.shape, -1).astype(np.float32)
        return (groups * self.scales[..., None] + self.biases[..., None]).reshape(self.codes.shape)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes: (n, k) uint8, k a multiple of 32 -> (n, k * bits / 8) uint8"""
    if bits == 8:
        return codes
    if bits == 4:
        return codes[:, ::2] | codes[:, 1::2] << 4
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(len(codes), -1), axis=-1, bitorder="little")


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack`."""
    if bits == 8:
        return packed
    if bits == 4:
        return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    stream = np.unpackbits(packed, axis=-1, bitorder="little").reshape(len(packed), -1, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


def quantize(x: np.ndarray, layout: Layout) -> Rows:
    """x: (n, k) float32, finite. Codes first span the range of a group, or with few bits also narrower ranges.

    Scale and bias are then fitted to the codes, by least squares; the fit with the least squared error is kept.
    """
    groups = x.reshape(len(x), -1, layout.group)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    steps = np.float32((1 << layout.bits) - 1)
    best, least = _round(groups, (high - low) / steps, low, layout.bits)
    for part in PARTS if layout.bits <= FEW else PARTS[:1]:
        margin = (high - low) * np.float32((1 - part) / 2)
        found, _ = _round(groups, (high - low - 2 * margin) / steps, low + margin, layout.bits)
        for _ in range(REFITS):
            found, error = _round(groups, *_fit(groups, found[0]), layout.bits)
            better = error < least
            best = tuple(np.where(better, new, old) for new, old in zip(found, best, strict=True))
            least = np.minimum(error, least)
    codes, scales, biases = best
    return Rows(codes.astype(np.uint8).reshape(x.shape), scales[..., 0], biases[..., 0])


Fit = tuple[np.ndarray, ...]


def _round(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, bits: int) -> tuple[Fit, np.ndarray]:
    """The nearest codes, with scale and bias, and the squared error of each group."""
    safe = np.where(scale == 0, np.float32(1), scale)
    codes = np.clip(np.rint((x - bias) / safe), 0, (1 << bits) - 1)
    error = np.square(codes * scale + bias - x).sum(axis=-1, keepdims=True)
    return (codes, scale, bias), error


def _fit(x: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the bias of least squared error for given codes."""
    mean, middle = x.mean(axis=-1, keepdims=True), codes.mean(axis=-1, keepdims=True)
    spread = np.square(codes - middle).sum(axis=-1, keepdims=True)
    together = ((codes - middle) * (x - mean)).sum(axis=-1, keepdims=True)
    scale = together / np.where(spread == 0, np.float32(1), spread)
    return scale, mean - scale * middle


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """x: float32 -> an array of the same shape with the bits of a float type of FLOATS, to the nearest value.

    Raises ValueError for a number that the type does not hold.
    """
    if not np.isfinite(x).all():
        raise ValueError("expected finite numbers")
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        found = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            found = x.astype(FLOATS[dtype][1])
    if not np.isfinite(loaded(found, dtype)).all():
        raise ValueError(f"{np.abs(x).max():g} is beyond {dtype}; --dtype float32 holds it")
    return found


def loaded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `stored`, float32."""
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32, copy=False)
