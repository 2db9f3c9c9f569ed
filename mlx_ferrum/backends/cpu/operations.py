"""Native kernels that read the mapped bytes in place.

Activations are NumPy arrays here, from the embedding to the logits: a call into the library costs some
3 us, an `mx.eval` 14 us, and a token has hundreds of operations. Models cannot tell: they use only what
both kinds of array have. Products take activations as integers of 15 bits (32 values share a scale) and
sum exactly; everything else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ...kernels.activation import ACTIVATIONS
from ...kernels.cpu import native
from ...options import Activation, Norm
from ...tensor import QTensor
from .arguments import constant, floats, places, shaped
from .attention import allocate as allocate
from .attention import append as append
from .attention import attend as attend
from .attention import attend_both_ways as attend_both_ways
from .experts import gather_down as gather_down
from .experts import gather_gate_up as gather_gate_up
from .experts import gather_matmul as gather_matmul
from .experts import route as route
from .experts import sigmoid_gate as sigmoid_gate
from .memory import empty, trace
from .recurrent import gate as gate
from .recurrent import gated_delta as gated_delta
from .recurrent import gated_norm as gated_norm
from .recurrent import short_conv as short_conv
from .step import Repeated

LAZY = False

repeated = Repeated


def prepare(threads: int | None) -> None:
    """Build and load the library. Raises BuildError, an OSError, if that cannot be done here."""
    native.library().ferrum_set_threads(threads or native.cores())


def place(tensors: Sequence[QTensor]) -> None:
    """Weights are read in the mapped file."""


def wired_limit() -> None:
    """Pages in use stay resident on a CPU."""


def matmul(
    x: np.ndarray, w: QTensor, *, bias: mx.array | None = None, add: np.ndarray | None = None
) -> np.ndarray:
    x, n, k = _rows_of(x)
    out = empty(*x.shape[:-1], w.rows)
    if add is not None:
        add = shaped("matmul: add", add, *out.shape)
    native.run("Matmuls", x=x, w=places([w], [bias]), add=add, out=out, n=n, k=k, count=1)
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
    native.run("Matmuls", x=x, w=weights, add=None, out=out, n=n, k=k, count=len(ws))
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
    native.run("GateUp", x=x, w=pair, out=out, n=n, k=k, act=ACTIVATIONS[act])
    return out


def norm_matmul(x: np.ndarray, w: QTensor, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    x = _normed(x, norm)
    return x, matmul(x, w)


def rows(w: QTensor, ids: mx.array | np.ndarray, scale: float = 1.0) -> np.ndarray:
    index = trace(np.ascontiguousarray(np.asarray(ids), np.int64))
    k = w.shape[-1]
    out = empty(*index.shape, k)
    weight = places([w], [None])
    try:
        native.run("Rows", w=weight, ids=index, out=out, n=index.size, k=k, scale=scale)
    except ValueError as error:
        raise ValueError(f"{w}: {error}") from None
    return out


def dequantize(w: QTensor) -> np.ndarray:
    if w.is_spaced:
        return np.stack([dequantize(w.matrix(i)) for i in range(w.shape[0])])
    flat = QTensor(w.block, (w.rows, w.shape[-1]), w.buffer, w.offset)
    return rows(flat, np.arange(w.rows)).reshape(w.shape)


def rms_norm(
    x: np.ndarray, weight: mx.array, eps: float, *, add: np.ndarray | None = None
) -> np.ndarray:
    x, n, d = _rows_of(x)
    scale = constant("rms_norm: weight", weight, d)
    if add is not None:
        add = shaped("rms_norm: add", add, *x.shape)
    out = empty(*x.shape)
    native.run("RmsNorm", x=x, weight=scale, add=add, out=out, rows=n, d=d, eps=eps)
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    x = floats(x)
    out = empty(*x.shape)
    native.run("Gelu", x=x, out=out, count=x.size)
    return out


def softcap(x: np.ndarray, cap: float) -> np.ndarray:
    x = floats(x)
    out = empty(*x.shape)
    native.run("Softcap", x=x, out=out, count=x.size, cap=cap)
    return out


def choose(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, n, k = _rows_of(logits)
    ids, ranges = empty(n, dtype=np.int32), empty(n, 2)
    native.run("Choose", logits=logits, ids=ids, ranges=ranges, n=n, k=k)
    return ids, ranges


def mask_logits(logits: np.ndarray, bits: np.ndarray) -> np.ndarray:
    logits, n, k = _rows_of(logits)
    bits, out = trace(np.ascontiguousarray(bits)), empty(n, k)
    native.run("MaskLogits", logits=logits, bits=bits, out=out, n=n, k=k)
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
