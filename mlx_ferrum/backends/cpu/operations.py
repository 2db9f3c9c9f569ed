"""Native kernels that read the mapped bytes in place.

Activations are NumPy arrays here, from the embedding to the logits: a call into the library costs some
3 us, an `mx.eval` 14 us, and a token has hundreds of operations. Models cannot tell: they use only what
both kinds of array have. Products take activations as integers of 15 bits (32 values share a scale) and
sum exactly; everything else is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ...kernels.activation import ACTIVATIONS
from ...kernels.cpu import calls, native
from ...options import Activation, HeadNorms, Norm
from ...tensor import QTensor
from .arguments import address, floats, places, shaped
from .experts import gather_down as gather_down
from .experts import gather_gate_up as gather_gate_up
from .experts import gather_matmul as gather_matmul
from .experts import route as route
from .experts import sigmoid_gate as sigmoid_gate
from .memory import empty
from .step import Step

LAZY = False

stepper = Step


def prepare(threads: int | None) -> None:
    """Build and load the library. Raises BuildError, an OSError, if that cannot be done here."""
    native.library().ferrum_set_threads(threads or native.cores())


def wired_limit() -> None:
    """Pages in use stay resident on a CPU."""


def matmul(
    x: np.ndarray, w: QTensor, *, bias: mx.array | None = None, add: np.ndarray | None = None
) -> np.ndarray:
    x, n, k = _rows_of(x)
    out = empty(*x.shape[:-1], w.rows)
    if add is not None:
        add = shaped("matmul: add", add, *out.shape)
    weights = places([w], [bias])
    native.run(
        calls.Matmuls(address(x), address(weights), address(add), address(out), n, k, 1),
        x,
        add,
        out,
    )
    return out


def matmuls(
    x: np.ndarray,
    ws: Sequence[QTensor],
    biases: Sequence[mx.array | None] | None = None,
    *,
    norm: Norm | None = None,
) -> list[np.ndarray]:
    x, n, k = _rows_of(_normed(x, norm))
    out = empty(n * sum(w.rows for w in ws))
    weights = places(ws, biases or [None] * len(ws))
    native.run(
        calls.Matmuls(address(x), address(weights), None, address(out), n, k, len(ws)), x, out
    )
    parts, start = [], 0
    for w in ws:
        parts.append(out[start : start + n * w.rows].reshape(*x.shape[:-1], w.rows))
        start += n * w.rows
    return parts


def gate_up(
    x: np.ndarray,
    gate: QTensor,
    up: QTensor,
    act: Activation,
    *,
    biases: Sequence[mx.array | None] | None = None,
    norm: Norm | None = None,
) -> np.ndarray:
    x, n, k = _rows_of(_normed(x, norm))
    out = empty(*x.shape[:-1], gate.rows)
    pair = places([gate, up], biases or [None, None])
    native.run(
        calls.GateUp(address(x), address(pair), address(out), n, k, ACTIVATIONS[act]), x, out
    )
    return out


def norm_matmul(x: np.ndarray, w: QTensor, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    x = _normed(x, norm)
    return x, matmul(x, w)


def rows(w: QTensor, ids: mx.array | np.ndarray, scale: float = 1.0) -> np.ndarray:
    index = np.ascontiguousarray(np.asarray(ids), np.int64)
    if index.size and (index.min() < 0 or index.max() >= w.rows):
        raise ValueError(
            f"{w}: row ids lie between 0 and {w.rows - 1}, found {index.min()} to {index.max()}"
        )
    k = w.shape[-1]
    out = empty(*index.shape, k)
    call = calls.Rows(
        address(places([w], [None])), index.ctypes.data, address(out), index.size, k, scale
    )
    native.run(call, index, out)
    return out


def dequantize(w: QTensor) -> np.ndarray:
    flat = QTensor(w.block, (w.rows, w.shape[-1]), w.buffer, w.offset)
    return rows(flat, np.arange(w.rows)).reshape(w.shape)


def rms_norm(
    x: np.ndarray, weight: mx.array, eps: float, *, add: np.ndarray | None = None
) -> np.ndarray:
    x, d = floats(x), x.shape[-1]
    scale = shaped("rms_norm: weight", weight, d)
    if add is not None:
        add = shaped("rms_norm: add", add, *x.shape)
    out = empty(*x.shape)
    call = calls.RmsNorm(
        address(x), address(scale), address(add), address(out), x.size // d, d, eps
    )
    native.run(call, x, scale, add, out)
    return out


def rotate(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    frequencies: mx.array,
    *,
    offset: int | mx.array,
    interleaved: bool,
    magnitude: float = 1.0,
    norms: HeadNorms | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    q, k, v, turns = map(floats, (q, k, v, frequencies))
    (b, length, h, d), (g, dv) = q.shape, v.shape[2:]
    if k.shape != (b, length, g, d) or v.shape[:2] != (b, length):
        raise ValueError(f"rotate: q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    if 2 * turns.size > d:
        raise ValueError(f"rotate: {turns.size} pairs do not fit heads of {d}")
    q_weight, k_weight, eps = (None, None, 0.0) if norms is None else norms
    weights = [w if w is None else shaped("rotate: norm", w, d) for w in (q_weight, k_weight)]
    turned = empty(b, h, length, d)
    # half precision: attention over a long context is bound by reading keys and values
    shape = (2, b, g, length, max(d, dv))
    new = empty(math.prod(shape) // 2).view(np.float16).reshape(shape)
    offsets = np.empty(b, np.int64)
    offsets[:] = offset
    inputs = (q, k, v, *weights, turns, offsets)
    call = calls.Rotate(
        *map(address, (*inputs, turned, new)),
        *(b, length, h, g, d, dv, turns.size, interleaved),
        *(magnitude, eps),
    )
    native.run(call, *inputs, turned, new)
    return turned, new


def put(stored: np.ndarray, at: int | mx.array, new: np.ndarray) -> np.ndarray:
    at = int(at)
    _, b, g, length, width = new.shape
    room = (2, b, g, stored.shape[3], width)
    if stored.shape != room or not 0 <= at <= stored.shape[3] - length:
        raise ValueError(f"put: {new.shape} at {at} does not fit {stored.shape}")
    if stored.dtype != new.dtype:
        raise ValueError(f"put: stored is {stored.dtype}, new is {new.dtype}, expected the same")
    row = width * new.itemsize
    strides = [tuple(n * x.itemsize for n in _strides("put", x)) for x in (new, stored)]
    addresses = new.ctypes.data, stored.ctypes.data
    call = calls.Put(*addresses, at, b, g, length, row, *strides)
    native.run(call, new, stored)
    return stored


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, window: int | None = None
) -> np.ndarray:
    return _attend(floats(q), np.asarray(k), np.asarray(v), scale, window=window or 0)


def attend_both_ways(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, lengths: list[int], *, scale: float
) -> np.ndarray:
    out = np.zeros(q.shape, np.float32)
    for i, n in enumerate(lengths):
        rows = (np.asarray(x)[i : i + 1, :, :n] for x in (q, k, v))
        q_row, k_row, v_row = rows
        out[i, :, :n] = _attend(floats(q_row), k_row, v_row, scale, both_ways=True)[0]
    return out


def _attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    *,
    window: int = 0,
    both_ways: bool = False,
) -> np.ndarray:
    (b, h, length, d), (_, g, held, dv) = q.shape, v.shape
    if k.shape != (b, g, held, d) or v.shape[0] != b or h % g or length > held:
        raise ValueError(f"attend: q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    if k.dtype != v.dtype:
        raise ValueError(f"attend: k is {k.dtype}, v is {v.dtype}, expected the same")
    out = empty(b, h, length, dv)
    call = calls.Attention(
        *(address(q), k.ctypes.data, v.ctypes.data, address(out)),
        *(b, h, g, length, held, d, dv, window, _halves("attend: k", k), both_ways),
        *(*_strides("attend: k", k), *_strides("attend: v", v), scale),
    )
    native.run(call, q, k, v, out)
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    x = floats(x)
    out = empty(*x.shape)
    native.run(calls.Gelu(address(x), address(out), x.size), x, out)
    return out


def to_mlx(x: np.ndarray) -> mx.array:
    return mx.array(x)


def _normed(x: np.ndarray, norm: Norm | None) -> np.ndarray:
    return x if norm is None else rms_norm(x, *norm)


def _rows_of(x: np.ndarray) -> tuple[np.ndarray, int, int]:
    """x contiguous, how many rows it has, and their width."""
    x = floats(x)
    k = x.shape[-1]
    return x, x.size // k, k


def _halves(name: str, x: np.ndarray) -> bool:
    """Whether x is float16. Raises ValueError if it is not float32 either."""
    if x.dtype not in (np.float16, np.float32):
        raise ValueError(f"{name}: expected float16 or float32, found {x.dtype}")
    return bool(x.dtype == np.float16)


def _strides(name: str, x: np.ndarray) -> tuple[int, ...]:
    """Strides of all axes but the last, in numbers. Raises ValueError unless the last axis is contiguous."""
    size = x.itemsize
    *outer, last = x.strides
    if last != size and x.shape[-1] > 1:
        raise ValueError(f"{name}: expected a contiguous last axis, found strides {x.strides}")
    return tuple(stride // size for stride in outer)
