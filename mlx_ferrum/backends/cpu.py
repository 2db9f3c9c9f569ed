"""Native kernels that read the mapped bytes in place.

Activations are NumPy arrays here, from the embedding to the logits: a call into the library costs some
3 us, an `mx.eval` 14 us, and a token has hundreds of operations. Models cannot tell: they use only what
both kinds of array have. Products take activations as integers of 15 bits (32 values share a scale) and
sum exactly; everything else is float32.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char
from typing import Any

import mlx.core as mx
import numpy as np

from ..kernels.cpu import native
from ..kernels.cpu.native import Weight
from ..ops import Activation
from ..tensor import QTensor

LAZY = False
_ACTIVATIONS = {"silu": 0, "gelu": 1}


def prepare(threads: int | None) -> None:
    """Build and load the library. Raises BuildError, an OSError, if that cannot be done here."""
    native.library().ferrum_set_threads(threads or native.cores())


def matmul(x: np.ndarray, w: QTensor) -> np.ndarray:
    return matmuls(x, [w])[0]


def matmuls(x: np.ndarray, ws: list[QTensor]) -> list[np.ndarray]:
    x, n, k = _rows_of(x, ws)
    lead = x.shape[:-1]
    out = np.empty(n * sum(w.rows for w in ws), np.float32)
    native.library().ferrum_matmuls(_address(x), n, k, _weights(ws), len(ws), _address(out))
    if len(ws) == 1:
        return [out.reshape(*lead, ws[0].rows)]
    parts, start = [], 0
    for w in ws:
        parts.append(out[start : start + n * w.rows].reshape(*lead, w.rows))
        start += n * w.rows
    return parts


def gate_up(x: np.ndarray, gate: QTensor, up: QTensor, act: Activation) -> np.ndarray:
    x, n, k = _rows_of(x, [gate, up])
    if gate.rows != up.rows:
        raise ValueError(f"gate_up: {gate} and {up} differ in rows")
    out = np.empty((*x.shape[:-1], gate.rows), np.float32)
    pair = _weights([gate, up])
    native.library().ferrum_gate_up(_address(x), n, k, pair, _ACTIVATIONS[act], _address(out))
    return out


def rows(w: QTensor, ids: mx.array | np.ndarray) -> np.ndarray:
    index = np.ascontiguousarray(np.asarray(ids), np.int64)
    if index.size and (index.min() < 0 or index.max() >= w.rows):
        raise ValueError(
            f"{w}: row ids lie between 0 and {w.rows - 1}, found {index.min()} to {index.max()}"
        )
    out = np.empty((*index.shape, w.shape[-1]), np.float32)
    native.library().ferrum_rows(
        _weights([w]), index.ctypes.data, index.size, w.shape[-1], _address(out)
    )
    return out


def dequantize(w: QTensor) -> np.ndarray:
    flat = QTensor(w.block, (w.rows, w.shape[-1]), w.buffer, w.offset)
    return rows(flat, np.arange(w.rows)).reshape(w.shape)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x, d = _floats(x), x.shape[-1]
    out = np.empty(x.shape, np.float32)
    native.library().ferrum_rms_norm(
        _address(x), _address(_floats(weight)), x.size // d, d, eps, _address(out)
    )
    return out


def norm_rope(
    x: np.ndarray,
    frequencies: np.ndarray,
    *,
    offset: int | np.ndarray,
    interleaved: bool,
    magnitude: float = 1.0,
    norm: tuple[np.ndarray, float] | None = None,
) -> np.ndarray:
    x = _floats(x)
    b, length, h, d = x.shape
    out = np.empty((b, h, length, d), np.float32)
    offsets = np.empty(b, np.int64)
    offsets[:] = offset
    weight, eps = (None, 0.0) if norm is None else (_floats(norm[0]), norm[1])
    frequencies = _floats(frequencies)
    call = native.NormRope(
        _address(x),
        None if weight is None else _address(weight),
        _address(frequencies),
        _address(offsets),
        _address(out),
        *(b, length, h, d, frequencies.size, interleaved),
        *(magnitude, eps),
    )
    native.library().ferrum_norm_rope(ctypes.byref(call))
    return out


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, window: int | None = None
) -> np.ndarray:
    q = _floats(q)
    (b, h, length, d), (_, g, held, dv) = q.shape, v.shape
    out = np.empty((b, h, length, dv), np.float32)
    call = native.Attention(
        *(_address(q), k.ctypes.data, v.ctypes.data, _address(out)),
        *(b, h, g, length, held, d, dv, window or 0),
        *(_strides(k)),
        *(_strides(v)),
        scale,
    )
    native.library().ferrum_attend(ctypes.byref(call))
    return out


def to_mlx(x: np.ndarray) -> mx.array:
    return mx.array(x)


def _rows_of(x: np.ndarray, ws: list[QTensor]) -> tuple[np.ndarray, int, int]:
    """x contiguous, how many rows it has, and their width. Raises ValueError if a weight differs."""
    x = _floats(x)
    k = x.shape[-1]
    for w in ws:
        if len(w.shape) != 2 or w.shape[1] != k:
            raise ValueError(f"matmul: x of shape {x.shape} does not fit {w}")
    return x, x.size // k, k


def _weights(ws: list[QTensor]) -> ctypes.Array[Weight]:
    """Where weights lie, as the library takes it; kept, with the tensors, on the first of them."""
    key = tuple(map(id, ws))
    kept = ws[0].kept.get(key)
    if kept is None:
        fields = [(w.data.ctypes.data, w.block.id, w.rows) for w in ws]
        kept = ws[0].kept[key] = ((Weight * len(ws))(*fields), ws)
    return kept[0]


def _floats(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32)


def _address(x: Any) -> int:
    # an array; five times faster than x.ctypes.data
    return ctypes.addressof(c_char.from_buffer(x))


def _strides(x: np.ndarray) -> tuple[int, int, int]:
    """Strides of batch, head and position in floats; the last axis must be contiguous."""
    return x.strides[0] // 4, x.strides[1] // 4, x.strides[2] // 4


if __name__ == "__main__":
    import sys

    from .cpu_command import main

    sys.exit(main())
