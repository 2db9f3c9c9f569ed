"""matvec: x wᵀ for a few rows of x."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel
from mlx_ferrum.tensor import QTensor

from .header import header

MOST = 8  # rows of x
LANES = 32
SIMDGROUPS = 2  # per threadgroup, as in matvec.metal
# For kernels with an optional RMS norm of x, by whether it is there: the names of the inputs, and x in the body.
INPUTS = {False: ("x",), True: ("x", "norm", "eps")}
INPUT = {False: "x", True: "rms_norm_input(x, norm, eps[0])"}
BODY = """
    int simdgroup = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    matvec<ROWS, BATCH, BIAS, ADD>((const device Weight*)w, x, bias, add, y, w_shape[0], x_shape[1],
                                   ROWS * simdgroup, thread_index_in_simdgroup);
"""


def matvec(
    x: mx.array,
    w: QTensor,
    *,
    bias: mx.array | None = None,
    add: mx.array | None = None,
    rows: int = 4,
) -> mx.array:
    """Computes x wᵀ + bias + add in one launch, as float32.

    x: (n, k) of a float type, n at most `MOST`, may be 0; w: (rows, k) of at least 8 words -> (n, rows)
    bias: (rows,); add: (n, rows)
    rows: rows of w per simdgroup; more rows save loads of x, fewer rows give more simdgroups
    """
    check(x, w)
    tiles = -(-w.rows // (rows * SIMDGROUPS))
    (y,) = _kernel(w.block.name)(
        [x, w.array, x if bias is None else bias, x if add is None else add],
        template={
            "ROWS": rows,
            "BATCH": x.shape[0],
            "BIAS": bias is not None,
            "ADD": add is not None,
        },
        grid=(LANES * SIMDGROUPS * tiles, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(x.shape[0], w.rows)],
        output_dtypes=[mx.float32],
    )
    return y


def check(x: mx.array, *ws: QTensor) -> None:
    """Raises ValueError unless x is (n, k) with n at most `MOST` and every w (rows, k)."""
    if x.ndim != 2 or x.shape[0] > MOST:
        raise ValueError(f"matvec: x of shape {x.shape}, expected at most {MOST} rows")
    for w in ws:
        if len(w.shape) != 2 or w.shape[1] != x.shape[1]:
            raise ValueError(f"matvec: x of shape {x.shape} does not fit {w}")


def check_norm(x: mx.array, weight: mx.array) -> None:
    """Raises ValueError unless weight is (k,) for x: (n, k)."""
    if weight.shape != x.shape[1:]:
        raise ValueError(f"matvec: a norm of {weight.shape} does not fit x of shape {x.shape}")


def normed_input(x: mx.array, norm: tuple[mx.array, float] | None) -> tuple[list[mx.array], bool]:
    """The inputs named by `INPUTS`, and whether there is a norm. Raises ValueError if the norm does not fit x."""
    if norm is None:
        return [x], False
    weight, eps = norm
    check_norm(x, weight)
    return [x, weight, mx.array([eps], mx.float32)], True


@functools.cache
def _kernel(block: str) -> Kernel:
    return Kernel(
        name=f"matvec_{block}",
        source=BODY,
        inputs=("x", "w", "bias", "add"),
        outputs=("y",),
        header=header("matvec.metal", Weight=block),
    )
