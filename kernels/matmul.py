"""matmul: x wᵀ for many rows of x, in tiles of halves."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel
from mlx_ferrum.options import Activation
from mlx_ferrum.tensor import Layout, QTensor

from .activation import ACTIVATIONS, NO_ACTIVATION
from .header import header

THREADS = 128
TILE_ROWS = 64  # of w, as in matmul.metal
BODY = """
    threadgroup half4 memory[(TILE_ROWS + COLUMNS) * DEPTH / 4];
    int rows = w_shape[0], n = x_shape[0], tiles = (n + COLUMNS - 1) / COLUMNS;
    int tile = threadgroup_position_in_grid.x;
    ColumnRange columns = {tile % tiles * COLUMNS, n};
    matmul<COLUMNS>((const device Weight*)w, x, columns, make_epilogue<BIAS, ADD, ACT>(bias, add, gate), y, rows,
                    x_shape[1], tile / tiles * TILE_ROWS, memory, thread_index_in_threadgroup);
"""


def matmul(
    x: mx.array,
    w: QTensor,
    *,
    bias: mx.array | None = None,
    add: mx.array | None = None,
    gate: tuple[mx.array, Activation] | None = None,
    columns: int = 64,
    tensor: bool = False,
) -> mx.array:
    """Computes act(gate) * (x wᵀ + bias + add), as float32; weights and x are first rounded to float16.

    Weights and values of x beyond ±65,504, the range of float16, are clamped to ±65,504; NaN stays NaN.

    x: (n, k) of a float type; w: (rows, k) of at least 8 words -> (n, rows)
    bias: (rows,); add: (n, rows); gate: (n, rows) and an activation
    columns: rows of x in a tile, 16, 32 or 64
    tensor: whether tiles are multiplied by Metal 4's tensor operations; only where tensor_products.failure finds none
    """
    gated, act = (x, NO_ACTIVATION) if gate is None else (gate[0], ACTIVATIONS[gate[1]])
    flags = Flags(bias is not None, add is not None, act)
    (y,) = _call(x.shape, w.layout, flags, columns, tensor)(
        [x, w.array, x if bias is None else bias, x if add is None else add, gated]
    )
    return y


class Flags(NamedTuple):
    """What is done to a product."""

    bias: bool
    add: bool
    act: int


@functools.lru_cache(KEPT)
def _call(x: tuple[int, ...], w: Layout, flags: Flags, columns: int, tensor: bool) -> Call:
    if len(x) != 2 or len(w.shape) != 2 or w.shape[1] != x[1]:
        raise ValueError(f"matmul: x of shape {x} does not fit {w}")
    groups = -(-w.shape[0] // TILE_ROWS) * -(-x[0] // columns)
    # adjacent threadgroups share rows of w, so that these are read from memory once
    return _kernel(w.block.name, tensor).prepare(
        template={"COLUMNS": columns, "BIAS": flags.bias, "ADD": flags.add, "ACT": flags.act},
        grid=(THREADS * groups, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(x[0], w.shape[0])],
        output_dtypes=[mx.float32],
    )


@functools.cache
def _kernel(block: str, tensor: bool) -> Kernel:
    return Kernel(
        name=f"matmul_{'tensor_' * tensor}{block}",
        source=BODY,
        inputs=("x", "w", "bias", "add", "gate"),
        outputs=("y",),
        header=replace(header("matmul.metal", Weight=block), tensor=tensor),
    )
