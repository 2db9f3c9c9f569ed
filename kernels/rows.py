"""rows: gathers rows of a matrix by their ids, as float32."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant
from mlx_ferrum.tensor import Layout, QTensor

from .header import header

THREADS = 64
BODY = """
    int k = w_shape[1] * int(sizeof(*w)) / int(sizeof(Weight)) * Weight::WEIGHTS;
    gather_rows((const device Weight*)w, ids, y, w_shape[0], k, scale[0], thread_position_in_grid.x);
"""


def rows(w: QTensor, ids: mx.array, scale: float = 1.0) -> mx.array:
    """Gathers rows of w, times scale: w: (rows, k) of at least 8 words, ids: (n,) integers -> (n, k) float32.

    Ids are not checked, which would wait for them: an id outside [0, rows) gives a row of NaN.
    """
    if ids.ndim != 1 or not mx.issubdtype(ids.dtype, mx.integer):
        raise ValueError(f"rows: ids are {ids.dtype} {ids.shape}, expected integers (n,)")
    array = w.array if w.array.ndim == 2 else w.array.reshape(w.rows, -1)
    (y,) = _call(ids.size, w.layout)([array, ids, constant(scale)])
    return y


@functools.lru_cache(KEPT)
def _call(count: int, w: Layout) -> Call:
    k = w.shape[-1]
    chunk = 1 if w.block.weights == 1 else 16
    return _kernel(w.block.name).prepare(
        grid=(count * (k // chunk), 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(count, k)],
        output_dtypes=[mx.float32],
    )


@functools.cache
def _kernel(block: str) -> Kernel:
    return Kernel(
        name=f"rows_{block}",
        source=BODY,
        inputs=("w", "ids", "scale"),
        outputs=("y",),
        header=header("rows.metal", Weight=block),
    )
