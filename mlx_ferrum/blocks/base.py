"""What every block type shares: its layout, its size, and the ways from bytes to float32 and back.

A block type is one subclass of `Block` in a file of its own. It states its fields in file order and
decodes them; the size in bytes follows from the fields. kernels/quantize encodes. Nothing here knows a
file, a tensor or a backend. MLX is imported only to decode.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from ..lazy import mx

HALF_MAX = 65504.0  # the largest float16
FLOAT_MAX = float(np.finfo(np.float32).max)
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
    """A type that can be decoded and encoded. Subclasses give `fields`, `limit` and `decode`."""

    supported = True
    fields: ClassVar[dict[str, tuple[str, int]]]
    limit: ClassVar[float]  # the largest weight, of either sign, that `quantize` takes

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
    def quantize(
        cls,
        x: np.ndarray,
        importance: np.ndarray | None = None,
        effort: str = "normal",
        *,
        threads: int | None = None,
    ) -> np.ndarray:
        """The blocks of least weighted squared error that the search finds, sum of importance * (x - found)².

        x: (..., k), finite and within `limit` of 0 -> (..., row bytes) uint8
        importance: of each column, not negative: (k,) for all rows, or (..., k) with the leading dimensions of x
            before its rows, (experts, k) for (experts, rows, k) say. Columns count alike where it is None or 0 for a
            whole block.
        effort: how long to search, "fast", "normal" or "best"
        threads: all cores by default
        Raises ValueError for weights that the type cannot hold and for a bad importance, OSError where there is no
        C++ compiler.
        """
        from mlx_ferrum.kernels.quantize import native  # compiles when first called

        if effort not in native.EFFORTS:
            raise ValueError(f"effort: expected {', '.join(native.EFFORTS)}, found {effort!r}")
        k = x.shape[-1]
        raw = np.empty((*x.shape[:-1], cls.row_bytes(k)), np.uint8)
        if not raw.size:
            return raw
        weights = np.ascontiguousarray(x, np.float32)
        wrong = native.quantize(
            weights.reshape(-1, k),
            None if importance is None else cls._importance(x, importance),
            raw,
            type=cls.id,
            limit=cls.limit,
            effort=effort,
            threads=threads,
        )
        if wrong is not None:
            *row, column = map(int, np.unravel_index(wrong, x.shape))
            raise ValueError(
                f"{cls.name}: weights must be within {cls.limit:g} of 0, found "
                f"{weights.flat[wrong]:g} in row {', '.join(map(str, row)) or 0}, column {column}"
            )
        return raw

    @classmethod
    def _importance(cls, x: np.ndarray, importance: np.ndarray) -> np.ndarray:
        """Checked: (n, k) float32, each row for as many rows of x."""
        k = x.shape[-1]
        shapes = {(k,), (*x.shape[:-2], k)}
        if importance.shape not in shapes:
            expected = " or ".join(map(str, sorted(shapes, key=len)))
            raise ValueError(
                f"{cls.name}: expected importance of shape {expected}, found {importance.shape}"
            )
        found = np.ascontiguousarray(importance, np.float32).reshape(-1, k)
        bad = np.argwhere(~(np.isfinite(found) & (found >= 0)))
        if len(bad):
            row, column = map(int, bad[0])
            raise ValueError(
                f"{cls.name}: importance must be finite and not negative, found "
                f"{found[row, column]:g} for column {column} in row {row}"
            )
        return found

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
