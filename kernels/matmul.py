"""matmul: x wᵀ for many rows of x, in tiles of halves."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel
from mlx_ferrum.options import Activation
from mlx_ferrum.tensor import QTensor

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
) -> mx.array:
    """Computes act(gate) * (x wᵀ + bias + add), as float32; weights and x are first rounded to float16.

    Weights and values of x beyond ±65,504, the range of float16, are clamped to ±65,504; NaN stays NaN.

    x: (n, k) of a float type; w: (rows, k) of at least 8 words -> (n, rows)
    bias: (rows,); add: (n, rows); gate: (n, rows) and an activation
    columns: rows of x in a tile, 16, 32 or 64
    """
    if x.ndim != 2 or w.shape != (w.rows, x.shape[1]):
        raise ValueError(f"matmul: x of shape {x.shape} does not fit {w}")
    n = x.shape[0]
    groups = -(-w.rows // TILE_ROWS) * -(-n // columns)
    gated, act = (x, NO_ACTIVATION) if gate is None else (gate[0], ACTIVATIONS[gate[1]])
    # adjacent threadgroups share rows of w, so that these are read from memory once
    (y,) = _kernel(w.block.name)(
        [x, w.array, x if bias is None else bias, x if add is None else add, gated],
        template={
            "COLUMNS": columns,
            "BIAS": bias is not None,
            "ADD": add is not None,
            "ACT": act,
        },
        grid=(THREADS * groups, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(n, w.rows)],
        output_dtypes=[mx.float32],
    )
    return y


@functools.cache
def _kernel(block: str) -> Kernel:
    return Kernel(
        name=f"matmul_{block}",
        source=BODY,
        inputs=("x", "w", "bias", "add", "gate"),
        outputs=("y",),
        header=header("matmul.metal", Weight=block),
    )
