"""Arguments as the library takes them: contiguous arrays of known shape, and where they and the weights lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_char
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.cpu import calls
from ...tensor import QTensor


def floats(x: Any) -> np.ndarray:
    """x as contiguous float32."""
    return np.ascontiguousarray(x, np.float32)


def shaped(name: str, x: Any, *shape: int) -> np.ndarray:
    """x as contiguous floats. Raises ValueError if it is shaped otherwise."""
    x = floats(x)
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {x.shape}")
    return x


def address(x: Any) -> int | None:
    """The address of an array, which must be contiguous; None has none."""
    # five times faster than x.ctypes.data
    return None if x is None else ctypes.addressof(c_char.from_buffer(x))


def places(ws: Sequence[QTensor], biases: Sequence[mx.array | None]) -> ctypes.Array[calls.Weight]:
    """Where weights (..., rows, k) and biases (..., rows) lie; kept, with all it points to, on the first of them."""
    key = (*map(id, ws), *map(id, biases))
    kept = ws[0].kept.get(key)
    if kept is None:
        added = [
            None if bias is None else shaped(f"{w}: bias", bias, *w.shape[:-1])
            for w, bias in zip(ws, biases, strict=True)
        ]
        fields = [
            (w.data.ctypes.data, w.block.id, w.shape[-2], address(bias))
            for w, bias in zip(ws, added, strict=True)
        ]
        found = (calls.Weight * len(ws))(*fields)
        kept = ws[0].kept[key] = (found, list(ws), list(biases), added)
    return kept[0]
