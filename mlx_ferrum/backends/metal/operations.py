"""The operations on a GPU, and which kernel serves which shape.

Products and recurrent layers are float32; attention takes and returns float16. Products of several rows round
activations to float16: up to 8 rows, 16 activations share a scale; more rows, and attention, clamp to the range of
float16, ±65,504. MLX's own fast operations serve for norms that no product of few rows follows, and for attention in
both directions.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx import nn

from ...batch import Batch
from ...kernels import gate_up as gate_up_kernel
from ...kernels import mask_logits as mask_logits_kernel
from ...kernels import matmul as matmul_kernel
from ...kernels import matvec as matvec_kernel
from ...kernels import matvecs as matvecs_kernel
from ...kernels import norm_matvec as norm_matvec_kernel
from ...kernels import rms_norm as rms_norm_kernel
from ...kernels import rows as rows_kernel
from ...options import Activation, Norm
from ...tensor import QTensor
from .. import reference
from ..reference import ACTIVATIONS
from . import tensor_form
from .attention import append as append
from .attention import attend as attend
from .experts import gather_down as gather_down
from .experts import gather_gate_up as gather_gate_up
from .experts import gather_matmul as gather_matmul
from .experts import route as route
from .experts import sigmoid_gate as sigmoid_gate
from .recurrent import gate as gate
from .recurrent import gated_delta as gated_delta
from .recurrent import gated_norm as gated_norm
from .recurrent import short_conv as short_conv
from .shapes import as_rows, is_tiny, like, rows_a_simdgroup
from .thresholds import here

T = TypeVar("T")
LAZY = True


def matmul(
    x: mx.array, w: QTensor, *, bias: mx.array | None = None, add: mx.array | None = None
) -> mx.array:
    flat = as_rows(x)
    residual = None if add is None else as_rows(add)
    if is_tiny(w):
        y = _sum(flat @ dequantize(w).T, bias, residual)
    elif flat.shape[0] <= here.matvec_rows:
        rows = rows_a_simdgroup(w.rows)
        y = matvec_kernel.matvec(flat, w, bias=bias, add=residual, rows=rows)
    else:
        y = _tiled_matmul(flat, w, bias=bias, add=residual)
    return like(y, x)


def matmuls(
    x: mx.array,
    ws: Sequence[QTensor],
    biases: Sequence[mx.array | None] | None = None,
    *,
    norm: Norm | None = None,
) -> list[mx.array]:
    biases = [None] * len(ws) if biases is None else biases
    flat = as_rows(x)
    together = 2 <= len(ws) <= matvecs_kernel.MOST and flat.shape[0] <= here.matvec_rows
    if not together or any(map(is_tiny, ws)):
        x = _normed(x, norm)
        return [matmul(x, w, bias=bias) for w, bias in zip(ws, biases, strict=True)]
    rows = rows_a_simdgroup(sum(w.rows for w in ws))
    products = matvecs_kernel.matvecs(flat, ws, biases, norm=norm, rows=rows)
    return [like(y, x) for y in products]


def gate_up(
    x: mx.array,
    gate: QTensor,
    up: QTensor,
    act: Activation,
    *,
    biases: Sequence[mx.array | None] | None = None,
    norm: Norm | None = None,
) -> mx.array:
    flat = as_rows(x)
    has_bias = biases is not None and (biases[0] is not None or biases[1] is not None)
    if has_bias or is_tiny(gate) or is_tiny(up):  # rare, so the fused kernel does without biases
        gated, raised = matmuls(flat, [gate, up], biases, norm=norm)
        y = ACTIVATIONS[act](gated) * raised
    elif flat.shape[0] <= here.matvec_rows:
        rows = rows_a_simdgroup(2 * gate.rows) // 2  # of either matrix
        y = gate_up_kernel.gate_up(flat, gate, up, act, norm=norm, rows=rows)
    else:
        flat = _normed(flat, norm)
        y = _tiled_matmul(flat, up, gate=(_tiled_matmul(flat, gate), act))
    return like(y, x)


def norm_matmul(x: mx.array, w: QTensor, norm: Norm) -> tuple[mx.array, mx.array]:
    flat = as_rows(x)
    if flat.shape[0] > here.matvec_rows or is_tiny(w):
        x = _normed(x, norm)
        return x, matmul(x, w)
    normed, y = norm_matvec_kernel.norm_matvec(flat, w, norm)
    return like(normed, x), like(y, x)


def rows(w: QTensor, ids: mx.array | np.ndarray, scale: float = 1.0) -> mx.array:
    flat = ids if isinstance(ids, mx.array) else mx.array(ids)
    flat = flat if flat.ndim == 1 else flat.reshape(math.prod(ids.shape))
    y = dequantize(w)[flat] * scale if is_tiny(w) else rows_kernel.rows(w, flat, scale)
    return y if ids.ndim == 1 else y.reshape(*ids.shape, w.shape[-1])


def dequantize(w: QTensor) -> mx.array:
    if w.is_spaced:
        return mx.stack([dequantize(w.matrix(i)) for i in range(w.shape[0])])
    if is_tiny(w):
        return w.block.dequantize(w.array.view(mx.uint8)).reshape(w.shape)
    return rows(w, mx.arange(w.rows)).reshape(w.shape)


def allocate(shape: tuple[int, ...], bits: int) -> mx.array:
    return mx.zeros(shape, {8: mx.int8, 16: mx.float16, 32: mx.float32}[bits])


def attend_both_ways(
    q: mx.array, k: mx.array, v: mx.array, lengths: list[int], *, scale: float
) -> mx.array:
    seen = mx.arange(k.shape[2]) < mx.array(lengths)[:, None, None, None]
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=seen)


def gelu(x: mx.array) -> mx.array:
    return nn.gelu(x)


def rms_norm(x: mx.array, weight: mx.array, eps: float, *, add: mx.array | None = None) -> mx.array:
    if add is None:
        return mx.fast.rms_norm(x, weight, eps)
    return rms_norm_kernel.rms_norm(x, weight, eps, add)


def mask_logits(logits: mx.array, bits: mx.array) -> mx.array:
    return mask_logits_kernel.mask_logits(logits, bits)


softcap, choose = reference.softcap, reference.choose


def to_mlx(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


def repeated(run: Callable[[Batch], T]) -> Callable[[Batch], T]:
    return run


def _normed(x: mx.array, norm: Norm | None) -> mx.array:
    return x if norm is None else rms_norm(x, *norm)


def _tiled_matmul(x: mx.array, w: QTensor, **options: Any) -> mx.array:
    """In the smallest tiles that hold all rows of x."""
    columns = next((columns for columns in (16, 32) if x.shape[0] <= columns), 64)
    tensor = tensor_form.works(columns)
    return matmul_kernel.matmul(x, w, columns=columns, tensor=tensor, **options)


def _sum(*parts: mx.array | None) -> mx.array:
    return functools.reduce(operator.add, (part for part in parts if part is not None))
