"""rows: gathers rows of a matrix by their ids, as float32."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel
from mlx_ferrum.tensor import QTensor

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
    k = w.shape[-1]
    chunk = 1 if w.block.weights == 1 else 16
    (y,) = _kernel(w.block.name)(
        [w.array.reshape(w.rows, -1), ids, mx.array([scale], mx.float32)],
        grid=(ids.size * (k // chunk), 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(ids.size, k)],
        output_dtypes=[mx.float32],
    )
    return y


@functools.cache
def _kernel(block: str) -> Kernel:
    return Kernel(
        name=f"rows_{block}",
        source=BODY,
        inputs=("w", "ids", "scale"),
        outputs=("y",),
        header=header("rows.metal", Weight=block),
    )
