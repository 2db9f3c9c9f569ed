"""Mixtures of experts on Apple GPUs: which kernel for which shape. Nothing waits for the router's choice."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ...kernels import gather_down as gather_down_kernel
from ...kernels import gather_gate_up as gather_gate_up_kernel
from ...kernels import gather_matmul as gather_matmul_kernel
from ...kernels import gather_matvec as gather_matvec_kernel
from ...kernels import route as route_kernel
from ...kernels import sort_pairs as sort_pairs_kernel
from ...kernels import weighted_sum as weighted_sum_kernel
from ...kernels.sort_pairs import Order
from ...options import Activation, Routing
from ...tensor import QTensor
from ..reference import ACTIVATIONS
from . import tensor_form
from .shapes import MATVEC_ROWS, as_rows, is_tiny, like, rows_a_simdgroup

# On average, up to here: a weight takes an M1 Max 2 ps for every pair, as each reads for itself, and 6 ps of
# arithmetic for a tile of 16, however few pairs that holds (bench/metal_cost.py).
PAIRS_AN_EXPERT = 3
TILES = (16, 32, 64)  # pairs; the smallest that holds an expert's average share wastes least


def route(
    logits: mx.array, routing: Routing, *, bias: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    ids, weights = route_kernel.route(as_rows(logits), routing, bias=bias)
    return like(ids, logits), like(weights, logits)


def gather_matmul(
    x: mx.array, w: QTensor, ids: mx.array, *, bias: mx.array | None = None
) -> mx.array:
    flat, chosen = _tokens(x, ids)
    if is_tiny(w):
        y = _tiny_products(flat[:, None], w, chosen)
        y = y if bias is None else y + bias[chosen]
    elif _are_few(chosen, w):
        rows = rows_a_simdgroup(ids.size * w.shape[1])
        y = gather_matvec_kernel.gather_matvec(flat, w, chosen, bias=bias, rows=rows)
    else:
        y = _tiled_matmul(flat, w, _order(chosen, w), bias=bias)
    return y.reshape(*ids.shape, w.shape[1])


def gather_gate_up(
    x: mx.array, gate: QTensor, up: QTensor, ids: mx.array, act: Activation
) -> mx.array:
    flat, chosen = _tokens(x, ids)
    if is_tiny(gate) or is_tiny(up):
        y = ACTIVATIONS[act](gather_matmul(flat, gate, chosen)) * gather_matmul(flat, up, chosen)
    elif _are_few(chosen, gate):
        rows = rows_a_simdgroup(2 * ids.size * gate.shape[1]) // 2  # of either matrix
        y = gather_gate_up_kernel.gather_gate_up(flat, gate, up, chosen, act, rows=rows)
    else:
        order = _order(chosen, gate)
        y = _tiled_matmul(flat, up, order, gate=(_tiled_matmul(flat, gate, order), act))
    return y.reshape(*ids.shape, gate.shape[1])


def gather_down(
    x: mx.array, w: QTensor, ids: mx.array, weights: mx.array, *, add: mx.array | None = None
) -> mx.array:
    d = w.shape[1]
    flat, chosen = _tokens(x, ids)
    shares, residual = weights.reshape(chosen.shape), None if add is None else as_rows(add)
    if is_tiny(w):
        products = _tiny_products(flat.reshape(*chosen.shape, -1), w, chosen).reshape(-1, d)
        y = weighted_sum_kernel.weighted_sum(products, shares, add=residual)
    elif _are_few(chosen, w):
        rows = rows_a_simdgroup(chosen.shape[0] * d)
        y = gather_down_kernel.gather_down(flat, w, chosen, shares, add=residual, rows=rows)
    else:
        products = _tiled_matmul(flat, w, _order(chosen, w))
        y = weighted_sum_kernel.weighted_sum(products, shares, add=residual)
    return like(y, ids)


def sigmoid_gate(x: mx.array, gate: mx.array, *, add: mx.array | None = None) -> mx.array:
    shares, residual = as_rows(gate), None if add is None else as_rows(add)
    y = weighted_sum_kernel.weighted_sum(as_rows(x), shares, add=residual, sigmoid=True)
    return like(y, x)


def _tokens(x: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
    """x: (…, k), ids: (…, n) -> (tokens, k), (tokens, n)"""
    return as_rows(x), as_rows(ids)


def _are_few(ids: mx.array, w: QTensor) -> bool:
    return ids.shape[0] <= MATVEC_ROWS or ids.size <= PAIRS_AN_EXPERT * w.shape[0]


def _tiled_matmul(x: mx.array, w: QTensor, order: Order, **options: Any) -> mx.array:
    tensor = tensor_form.works(order.size)
    return gather_matmul_kernel.gather_matmul(x, w, order, tensor=tensor, **options)


def _order(ids: mx.array, w: QTensor) -> Order:
    experts = w.shape[0]
    size = next((size for size in TILES if ids.size <= size * experts), TILES[-1])
    return sort_pairs_kernel.sort_pairs(ids.reshape(ids.size), experts, size=size)


def _tiny_products(x: mx.array, w: QTensor, ids: mx.array) -> mx.array:
    """x: (tokens, n or 1, k), ids: (tokens, n) -> (tokens, n, rows)"""
    weights = w.block.dequantize(w.tile(0, w.rows)).reshape(w.shape)
    return (weights[mx.clip(ids, 0, w.shape[0] - 1)] @ x[..., None])[..., 0]
