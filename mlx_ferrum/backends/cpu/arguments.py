"""Arguments as the library takes them: contiguous arrays of known shape, and where they and the weights lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.cpu import native
from ...tensor import QTensor
from .memory import trace


def floats(x: Any) -> np.ndarray:
    """Activations as contiguous float32."""
    return trace(np.ascontiguousarray(x, np.float32))


def shaped(name: str, x: Any, *shape: int) -> np.ndarray:
    """Activations as contiguous floats. Raises ValueError for another shape."""
    x = floats(x)
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {x.shape}")
    return x


def constant(name: str, x: mx.array, *shape: int) -> np.ndarray:
    """A parameter of the model as contiguous floats.

    A recorded call reads it later, so a recording keeps it; a parameter that is made anew for each call lies elsewhere
    each time, by which it is noticed. Raises ValueError for another shape.
    """
    found = np.ascontiguousarray(x, np.float32)
    if found.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {found.shape}")
    native.keep(found)
    return found


def places(ws: Sequence[QTensor], biases: Sequence[mx.array | None]) -> ctypes.Array[Any]:
    """Where weights (..., rows, k) and biases (..., rows) lie; kept, with all it points to, on the first of them."""
    key = (*map(id, ws), *map(id, biases))
    kept = ws[0].kept.get(key)
    if kept is None:
        added = [
            None if bias is None else constant(f"{w}: bias", bias, *w.shape[:-1])
            for w, bias in zip(ws, biases, strict=True)
        ]
        fields = [
            (
                w.data.ctypes.data,
                w.block.id,
                w.shape[-2],
                None if b is None else native.address(b),
                *((None, 0) if w.stream is None else (w.stream[0].address, w.stream[1])),
                w.step,
            )
            for w, b in zip(ws, added, strict=True)
        ]
        found = native.weights(fields)
        # without the first itself: a cycle would keep its memory until the next garbage collection
        kept = ws[0].kept[key] = (found, list(ws[1:]), list(biases), added)
    native.keep(
        (ws[0], kept)
    )  # a recorded call reads the weights even if the model's layers are replaced
    return kept[0]
