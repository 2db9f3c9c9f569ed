"""What every block type shares: its layout, its size, and the ways from bytes to float32 and back.

A block type is one subclass of `Block` in a file of its own. It states its fields in file order and
decodes them; the size in bytes follows from the fields. Some can encode too. Nothing here knows a file,
a tensor or a backend. MLX is imported only to decode.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from ..lazy import mx

_CHUNK = 1 << 20  # weights that are quantized at a time
_FIELD_BYTES = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "f16": 2, "bf16": 2, "u32": 4, "f32": 4}
_MLX_DTYPES = {
    "u8": "uint8",
    "i8": "int8",
    "u16": "uint16",
    "i16": "int16",
    "f16": "float16",
    "bf16": "bfloat16",
    "u32": "uint32",
    "f32": "float32",
}
_NUMPY_DTYPES = {
    "u8": np.uint8,
    "i8": np.int8,
    "u16": np.uint16,
    "i16": np.int16,
    "f16": np.float16,
    "u32": np.uint32,
    "f32": np.float32,
}


class BlockType:
    """A ggml tensor type: `weights` values are stored in `bytes` bytes."""

    id: ClassVar[int]
    name: ClassVar[str]
    weights: ClassVar[int]
    bytes: ClassVar[int]
    supported: ClassVar[bool] = False

    @classmethod
    def row_bytes(cls, k: int) -> int:
        """Bytes of a row of `k` weights. Raises ValueError if `k` is not a multiple of the block."""
        if k % cls.weights:
            raise ValueError(f"{cls.name}: a row of {k} weights is not a multiple of {cls.weights}")
        return k // cls.weights * cls.bytes


class Block(BlockType):
    """A type that can be decoded. Subclasses give `fields` and `decode`; those with `encode` also `limit`."""

    supported = True
    fields: ClassVar[dict[str, tuple[str, int]]]
    limit: ClassVar[float | None] = None  # what `encode` can take, of either sign

    def __init_subclass__(cls, *, id: int, weights: int) -> None:
        cls.id, cls.name, cls.weights = id, cls.__name__, weights
        cls.bytes = sum(_FIELD_BYTES[dtype] * count for dtype, count in cls.fields.values())

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        """The weights of n blocks.

        block: one attribute a field, (n, count); float fields are float32 already
        returns: (n, weights) float32
        """
        raise NotImplementedError(f"{cls.__name__} does not define decode")

    @classmethod
    def dequantize(cls, raw: mx.array) -> mx.array:
        """raw: (..., row bytes) uint8 -> (..., k) float32, with the same bits as gguf-py."""
        if raw.dtype != mx.uint8 or raw.shape[-1] % cls.bytes:
            raise ValueError(
                f"{cls.name}: expected uint8 rows of a multiple of {cls.bytes} bytes, "
                f"found {raw.dtype} {raw.shape}"
            )
        k = raw.shape[-1] // cls.bytes * cls.weights
        weights = cls.decode(cls._split(raw.reshape(-1, cls.bytes)))
        return weights.reshape(*raw.shape[:-1], k)

    @classmethod
    def encode(cls, x: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of n blocks near x.

        x: (n, weights) float32, finite and within `limit`
        returns: (n, count), or (n,) for a count of 1
        """
        raise NotImplementedError(f"weights cannot be quantized to {cls.name}")

    @classmethod
    def quantize(cls, x: np.ndarray) -> np.ndarray:
        """x: (..., k) -> (..., row bytes) uint8, by the least squares that the search of `encode` finds.

        Raises NotImplementedError for a type without `encode`, ValueError for weights that it cannot hold.
        """
        shape = (*x.shape[:-1], cls.row_bytes(x.shape[-1]))
        x = np.ascontiguousarray(x, np.float32).reshape(-1, cls.weights)
        beyond = x[~(np.abs(x) <= cls.limit)] if cls.limit is not None else x[:0]
        if beyond.size:
            raise ValueError(
                f"{cls.name}: weights must be within {cls.limit:g} of 0, found {beyond[0]:g}"
            )
        raw, step = np.empty((len(x), cls.bytes), np.uint8), _CHUNK // cls.weights
        for start in range(0, len(x), step):
            raw[start : start + step] = cls._join(cls.encode(x[start : start + step]))
        return raw.reshape(shape)

    @classmethod
    def _join(cls, block: dict[str, np.ndarray]) -> np.ndarray:
        """The bytes of n blocks, (n, bytes) uint8, from fields as `encode` gives them."""
        columns = [
            np.ascontiguousarray(block[name].reshape(-1, count), _NUMPY_DTYPES[dtype]).view(
                np.uint8
            )
            for name, (dtype, count) in cls.fields.items()
        ]
        return np.concatenate(columns, axis=1)

    @classmethod
    def _split(cls, raw: mx.array) -> SimpleNamespace:
        block, start = SimpleNamespace(), 0
        for name, (dtype, count) in cls.fields.items():
            stop = start + _FIELD_BYTES[dtype] * count
            field = raw[:, start:stop].view(getattr(mx, _MLX_DTYPES[dtype]))
            is_float = dtype in ("f16", "bf16", "f32")
            setattr(block, name, field.astype(mx.float32) if is_float else field)
            start = stop
        return block


def bit_fields(packed: mx.array, *, bits: int, shifts: tuple[int, ...]) -> mx.array:
    """packed: (n, m, w) unsigned -> (n, m * len(shifts), w): the fields at each shift, one after the other."""
    n, m, w = packed.shape
    parts = mx.stack([packed >> shift for shift in shifts], axis=2) & ((1 << bits) - 1)
    return parts.reshape(n, m * len(shifts), w)


def halves(packed: mx.array) -> mx.array:
    """packed: (n, w) uint8 -> (n, 2 w) uint8: all low nibbles, then all high nibbles."""
    return mx.concatenate([packed & 15, packed >> 4], axis=-1)


def per_group(scale: mx.array, weights: mx.array) -> mx.array:
    """scale: (n, groups), weights: (n, ...) -> their product (n, groups, w) float32."""
    n, groups = scale.shape
    return scale[:, :, None] * weights.astype(mx.float32).reshape(n, groups, -1)


def packed(codes: np.ndarray, *, bits: int, fields: int) -> np.ndarray:
    """The inverse of `bit_fields`: (n, m * fields, w) uint8 -> (n, m, w), the first in the lowest bits."""
    n, rows, w = codes.shape
    shifts = np.arange(fields, dtype=np.uint8)[:, None] * np.uint8(bits)
    parts = codes.reshape(n, rows // fields, fields, w) << shifts
    return np.asarray(np.bitwise_or.reduce(parts, axis=2))
