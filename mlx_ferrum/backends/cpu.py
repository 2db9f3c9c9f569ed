"""Native kernels that read the mapped bytes in place.

Activations are NumPy arrays here, from the embedding to the logits: a call into the library costs some
3 us, an `mx.eval` 14 us, and a token has hundreds of operations. Models cannot tell: they use only what
both kinds of array have. Products take activations as integers of 15 bits (32 values share a scale) and
sum exactly; everything else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..kernels.cpu import calls, native
from ..ops import Activation
from ..tensor import QTensor
from . import cpu_experts
from .cpu_arguments import ACTIVATIONS
from .cpu_arguments import at as _at
from .cpu_arguments import floats as _floats
from .cpu_arguments import shaped as _shaped
from .cpu_arguments import weights as _weights
from .cpu_memory import empty
from .cpu_step import Step

LAZY = False

stepper = Step
route, sigmoid_gate = cpu_experts.route, cpu_experts.sigmoid_gate
gather_matmul, gather_gate_up = cpu_experts.gather_matmul, cpu_experts.gather_gate_up
gather_down = cpu_experts.gather_down


def prepare(threads: int | None) -> None:
    """Build and load the library. Raises BuildError, an OSError, if that cannot be done here."""
    native.library().ferrum_set_threads(threads or native.cores())


def matmul(
    x: np.ndarray, w: QTensor, *, bias: mx.array | None = None, add: np.ndarray | None = None
) -> np.ndarray:
    x, n, k = _rows_of(x, [w])
    out = empty(*x.shape[:-1], w.rows)
    if add is not None:
        add = _shaped("matmul: add", add, *out.shape)
    weights = _weights([w], [bias])
    native.run(calls.Matmuls(_at(x), _at(weights), _at(add), _at(out), n, k, 1), x, add, out)
    return out


def matmuls(
    x: np.ndarray, ws: Sequence[QTensor], biases: Sequence[mx.array | None] | None = None
) -> list[np.ndarray]:
    x, n, k = _rows_of(x, ws)
    out = empty(n * sum(w.rows for w in ws))
    weights = _weights(ws, biases or [None] * len(ws))
    native.run(calls.Matmuls(_at(x), _at(weights), None, _at(out), n, k, len(ws)), x, out)
    parts, start = [], 0
    for w in ws:
        parts.append(out[start : start + n * w.rows].reshape(*x.shape[:-1], w.rows))
        start += n * w.rows
    return parts


def gate_up(x: np.ndarray, gate: QTensor, up: QTensor, act: Activation) -> np.ndarray:
    x, n, k = _rows_of(x, [gate, up])
    if gate.rows != up.rows:
        raise ValueError(f"gate_up: {gate} and {up} differ in rows")
    out = empty(*x.shape[:-1], gate.rows)
    pair = _weights([gate, up], [None, None])
    native.run(calls.GateUp(_at(x), _at(pair), _at(out), n, k, ACTIVATIONS[act]), x, out)
    return out


def rows(w: QTensor, ids: mx.array | np.ndarray, scale: float = 1.0) -> np.ndarray:
    index = np.ascontiguousarray(np.asarray(ids), np.int64)
    if index.size and (index.min() < 0 or index.max() >= w.rows):
        raise ValueError(
            f"{w}: row ids lie between 0 and {w.rows - 1}, found {index.min()} to {index.max()}"
        )
    k = w.shape[-1]
    out = empty(*index.shape, k)
    call = calls.Rows(_at(_weights([w], [None])), index.ctypes.data, _at(out), index.size, k, scale)
    native.run(call, index, out)
    return out


def dequantize(w: QTensor) -> np.ndarray:
    flat = QTensor(w.block, (w.rows, w.shape[-1]), w.buffer, w.offset)
    return rows(flat, np.arange(w.rows)).reshape(w.shape)


def rms_norm(
    x: np.ndarray, weight: np.ndarray, eps: float, *, add: np.ndarray | None = None
) -> np.ndarray:
    x, d = _floats(x), x.shape[-1]
    weight = _shaped("rms_norm: weight", weight, d)
    if add is not None:
        add = _shaped("rms_norm: add", add, *x.shape)
    out = empty(*x.shape)
    call = calls.RmsNorm(_at(x), _at(weight), _at(add), _at(out), x.size // d, d, eps)
    native.run(call, x, weight, add, out)
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
    x, frequencies = _floats(x), _floats(frequencies)
    b, length, h, d = x.shape
    if 2 * frequencies.size > d:
        raise ValueError(f"norm_rope: {frequencies.size} pairs do not fit heads of {d}")
    weight, eps = (None, 0.0) if norm is None else norm
    if weight is not None:
        weight = _shaped("norm_rope: weight", weight, d)
    out = empty(b, h, length, d)
    offsets = np.empty(b, np.int64)
    offsets[:] = offset
    call = calls.NormRope(
        *(_at(x), _at(weight), _at(frequencies), _at(offsets), _at(out)),
        *(b, length, h, d, frequencies.size, interleaved),
        *(magnitude, eps),
    )
    native.run(call, x, weight, frequencies, offsets, out)
    return out


def cache_dtype(_: np.ndarray) -> Any:
    # attention over a long context is bound by reading keys and values
    return np.float16


def put(stored: np.ndarray, at: int, new: np.ndarray) -> np.ndarray:
    b, g, length, d = new.shape
    room = (b, g, stored.shape[2], d)
    if stored.shape != room or not 0 <= at <= stored.shape[2] - length:
        raise ValueError(f"put: {new.shape} at {at} does not fit {stored.shape}")
    call = calls.Put(
        *(new.ctypes.data, stored.ctypes.data, at, b, g, length, d, _halves("put: stored", stored)),
        *(*_strides("put: new", new), *_strides("put: stored", stored)),
    )
    if _halves("put: new", new):
        raise ValueError("put: new keys and values are float32")
    native.run(call, new, stored)
    return stored


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, window: int | None = None
) -> np.ndarray:
    q, k, v = _floats(q), np.asarray(k), np.asarray(v)
    (b, h, length, d), (_, g, held, dv) = q.shape, v.shape
    if k.shape != (b, g, held, d) or v.shape[0] != b or h % g or length > held:
        raise ValueError(f"attend: q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    if k.dtype != v.dtype:
        raise ValueError(f"attend: k is {k.dtype}, v is {v.dtype}, expected the same")
    out = empty(b, h, length, dv)
    call = calls.Attention(
        *(_at(q), k.ctypes.data, v.ctypes.data, _at(out)),
        *(b, h, g, length, held, d, dv, window or 0, _halves("attend: k", k)),
        *(*_strides("attend: k", k), *_strides("attend: v", v), scale),
    )
    native.run(call, q, k, v, out)
    return out


def to_mlx(x: np.ndarray) -> mx.array:
    return mx.array(x)


def _rows_of(x: np.ndarray, ws: Sequence[QTensor]) -> tuple[np.ndarray, int, int]:
    """x contiguous, how many rows it has, and their width. Raises ValueError if a weight differs."""
    x = _floats(x)
    k = x.shape[-1]
    for w in ws:
        if len(w.shape) != 2 or w.shape[1] != k:
            raise ValueError(f"matmul: x of shape {x.shape} does not fit {w}")
    return x, x.size // k, k


def _halves(name: str, x: np.ndarray) -> bool:
    """Whether x is float16. Raises ValueError if it is not float32 either."""
    if x.dtype not in (np.float16, np.float32):
        raise ValueError(f"{name}: expected float16 or float32, found {x.dtype}")
    return bool(x.dtype == np.float16)


def _strides(name: str, x: np.ndarray) -> tuple[int, int, int]:
    """Strides of batch, head and position in numbers. Raises ValueError unless the last axis is contiguous."""
    size = x.itemsize
    *outer, last = x.strides
    if last != size and x.shape[-1] > 1:
        raise ValueError(f"{name}: expected a contiguous last axis, found strides {x.strides}")
    return outer[0] // size, outer[1] // size, outer[2] // size


if __name__ == "__main__":
    import sys

    from .cpu_command import main

    sys.exit(main())
