"""Mixtures of experts on Apple GPUs: which kernel for which shape. Nothing waits for the router's choice."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
from . import resident, tensor_form
from .shapes import as_rows, is_tiny, like, rows_a_simdgroup
from .thresholds import here

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
        y = _tiled_matmul(flat, w, _order(chosen, w, _tile(chosen, w)), bias=bias)
    return y.reshape(*ids.shape, w.shape[1])


def gather_gate_up(
    x: mx.array, gate: QTensor, up: QTensor, ids: mx.array, act: Activation
) -> mx.array:
    flat, chosen = _tokens(x, ids)
    if is_tiny(gate) or is_tiny(up):
        y = ACTIVATIONS[act](gather_matmul(flat, gate, chosen)) * gather_matmul(flat, up, chosen)
    elif _are_few(chosen, gate):
        rows = rows_a_simdgroup(2 * ids.size * gate.shape[1]) // 2  # of either matrix
        fused = functools.partial(gather_gate_up_kernel.gather_gate_up, flat, act=act, rows=rows)
        is_mapped = gate.stream is None  # a decode step asks at once, which saves the host time
        y = fused(gate, up, chosen) if is_mapped else resident.by_experts([gate, up], chosen, fused)
    else:
        tile = _tile(chosen, gate)

        def tiled(gate: QTensor, up: QTensor, ids: mx.array) -> mx.array:
            order = _order(ids, gate, tile)
            return _tiled_matmul(flat, up, order, gate=(_tiled_matmul(flat, gate, order), act))

        y = resident.by_experts([gate, up], chosen, tiled)
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
    elif chosen.shape[0] <= here.matvec_rows:
        y = _fused_down(flat, w, chosen, shares, residual)
    else:
        products = resident.by_experts([w], chosen, _products_of(flat, chosen, w))
        y = weighted_sum_kernel.weighted_sum(products, shares, add=residual)
    return like(y, ids)


def _fused_down(
    x: mx.array, w: QTensor, ids: mx.array, weights: mx.array, add: mx.array | None
) -> mx.array:
    """x: (tokens * n, k), ids, weights: (tokens, n), add: (tokens, rows) -> (tokens, rows)"""
    count, used = ids.shape
    rows = rows_a_simdgroup(count * w.shape[1])
    if w.stream is None:
        return gather_down_kernel.gather_down(x, w, ids, weights, add=add, rows=rows)
    parts = x.reshape(count, used, x.shape[-1])

    def fused(w: QTensor, ids: mx.array, tokens: slice) -> mx.array:
        given = None if add is None else add[tokens]
        return gather_down_kernel.gather_down(
            parts[tokens].reshape(-1, x.shape[-1]), w, ids, weights[tokens], add=given, rows=rows
        )

    return resident.by_tokens(w, ids, fused)


def _products_of(x: mx.array, ids: mx.array, w: QTensor) -> Callable[[QTensor, mx.array], mx.array]:
    """The products of each pair's own row of x: (tokens * n, k) -> (tokens * n, rows)."""
    few, tile, rows = _are_few(ids, w), _tile(ids, w), rows_a_simdgroup(ids.size * w.shape[1])

    def products(w: QTensor, ids: mx.array) -> mx.array:
        if few:
            alone = ids.reshape(ids.size, 1)
            return gather_matvec_kernel.gather_matvec(x, w, alone, rows=rows)
        return _tiled_matmul(x, w, _order(ids, w, tile))

    return products


def sigmoid_gate(x: mx.array, gate: mx.array, *, add: mx.array | None = None) -> mx.array:
    shares, residual = as_rows(gate), None if add is None else as_rows(add)
    y = weighted_sum_kernel.weighted_sum(as_rows(x), shares, add=residual, sigmoid=True)
    return like(y, x)


def _tokens(x: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
    """x: (…, k), ids: (…, n) -> (tokens, k), (tokens, n)"""
    return as_rows(x), as_rows(ids)


def _are_few(ids: mx.array, w: QTensor) -> bool:
    return ids.shape[0] <= here.matvec_rows or ids.size <= here.pairs_an_expert * w.shape[0]


def _tiled_matmul(x: mx.array, w: QTensor, order: Order, **options: Any) -> mx.array:
    tensor = tensor_form.works(order.size)
    return gather_matmul_kernel.gather_matmul(x, w, order, tensor=tensor, **options)


def _tile(ids: mx.array, w: QTensor) -> int:
    """The pairs of a tile."""
    return next((size for size in TILES if ids.size <= size * w.shape[0]), TILES[-1])


def _order(ids: mx.array, w: QTensor, tile: int) -> Order:
    return sort_pairs_kernel.sort_pairs(ids.reshape(ids.size), w.shape[0], size=tile)


def _tiny_products(x: mx.array, w: QTensor, ids: mx.array) -> mx.array:
    """x: (tokens, n or 1, k), ids: (tokens, n) -> (tokens, n, rows)"""
    weights = w.block.dequantize(w.tile(0, w.rows)).reshape(w.shape)
    return (weights[mx.clip(ids, 0, w.shape[0] - 1)] @ x[..., None])[..., 0]
