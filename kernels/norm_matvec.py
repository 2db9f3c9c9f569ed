"""norm_matvec: the RMS norm of a few rows of x, and its product with a small weight."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant
from mlx_ferrum.tensor import Layout, QTensor

from .header import header
from .matvec import LANES, SIMDGROUPS, Shape, check, check_norm

BODY = """
    int simdgroup = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    norm_matvec<ROWS, BATCH>((const device Weight*)w, rms_norm_input(x, norm, eps[0]), out, y, w_shape[0],
                             x_shape[1], simdgroup, thread_index_in_simdgroup);
"""


def norm_matvec(
    x: mx.array, w: QTensor, norm: tuple[mx.array, float], *, rows: int = 1
) -> tuple[mx.array, mx.array]:
    """Computes the RMS norm of x, and its product with wᵀ, in one launch, as float32.

    x: (n, k) of a float type, n at most 8; w: (rows, k) of at least 8 words -> (n, k), (n, rows)
    norm: weight (k,) and epsilon
    rows: rows of w per simdgroup
    """
    weight, eps = norm
    check_norm(x, weight)
    out, y = _call(x.shape, w.layout, rows)([x, w.array, weight, constant(eps)])
    return out, y


@functools.lru_cache(KEPT)
def _call(x: Shape, w: Layout, rows: int) -> Call:
    check(x, w)
    tiles = -(-w.shape[0] // (rows * SIMDGROUPS))
    return _kernel(w.block.name).prepare(
        template={"ROWS": rows, "BATCH": x[0]},
        grid=(LANES * SIMDGROUPS * tiles, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[x, (x[0], w.shape[0])],
        output_dtypes=[mx.float32] * 2,
    )


@functools.cache
def _kernel(block: str) -> Kernel:
    return Kernel(
        name=f"norm_matvec_{block}",
        source=BODY,
        inputs=("x", "w", "norm", "eps"),
        outputs=("out", "y"),
        header=header("norm_matvec.metal", Weight=block),
    )
