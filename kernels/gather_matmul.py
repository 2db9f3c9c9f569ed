"""gather_matmul: x w[id]ᵀ for many tokens, in tiles of pairs with the same expert."""

from __future__ import annotations

import functools
from dataclasses import replace

import mlx.core as mx

from mlx_ferrum.launch import Kernel
from mlx_ferrum.options import Activation
from mlx_ferrum.tensor import QTensor

from .activation import ACTIVATIONS, NO_ACTIVATION
from .header import header
from .matmul import THREADS, TILE_ROWS
from .sort_pairs import Order

BODY = """
    threadgroup half4 memory[(TILE_ROWS + COLUMNS) * DEPTH / 4];
    ExpertShape shape = {count_experts(w_shape[0], EVERY), w_shape[1], x_shape[1], USED, EVERY};
    int row_tiles = (shape.rows + TILE_ROWS - 1) / TILE_ROWS, tile = threadgroup_position_in_grid.x;
    gather_matmul<COLUMNS, BIAS, ACT>((const device Weight*)w, x, order, tiles + 3 * (tile / row_tiles), bias, gate, y,
                                      shape, tile % row_tiles * TILE_ROWS, memory, thread_index_in_threadgroup);
"""


def gather_matmul(
    x: mx.array,
    w: QTensor,
    order: Order,
    *,
    bias: mx.array | None = None,
    gate: tuple[mx.array, Activation] | None = None,
    tensor: bool = False,
) -> mx.array:
    """Computes act(gate) * (x w[id]ᵀ + bias) in one launch, as float32; weights and x are first rounded to float16.

    Weights and values of x beyond ±65,504, the range of float16, are clamped to ±65,504; NaN stays NaN.

    x: (tokens, k) of a float type, with n pairs per token; w: (e, rows, k) of at least 8 words -> (pairs, rows); NaN
        for an id outside [0, e)
    order: the sorted pairs, in tiles of 16, 32 or 64
    bias: (e, rows); gate: (pairs, rows) and an activation; tensor: as in matmul
    """
    pairs, tokens = order.pairs.size, x.shape[0]
    left = pairs % tokens if tokens else pairs
    if len(w.shape) != 3 or x.shape != (tokens, w.shape[2]) or left:
        raise ValueError(f"gather_matmul: x of shape {x.shape} does not fit {w} and {pairs} pairs")
    row_tiles = -(-w.shape[1] // TILE_ROWS)
    gated, act = (x, NO_ACTIVATION) if gate is None else (gate[0], ACTIVATIONS[gate[1]])
    # adjacent threadgroups share rows of x
    (y,) = _kernel(w.block.name, tensor)(
        [x, w.array, order.pairs, order.tiles, x if bias is None else bias, gated],
        template={
            "COLUMNS": order.size,
            "USED": pairs // max(tokens, 1),
            "EVERY": w.layout.every,
            "BIAS": bias is not None,
            "ACT": act,
        },
        grid=(THREADS * row_tiles * order.tiles.shape[0], 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(pairs, w.shape[1])],
        output_dtypes=[mx.float32],
    )
    return y


@functools.cache
def _kernel(block: str, tensor: bool) -> Kernel:
    return Kernel(
        name=f"gather_matmul_{'tensor_' * tensor}{block}",
        source=BODY,
        inputs=("x", "w", "order", "tiles", "bias", "gate"),
        outputs=("y",),
        header=replace(header("gather_matmul.metal", Weight=block), tensor=tensor),
    )
