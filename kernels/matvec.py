"""matvec: x wᵀ for a few rows of x."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant
from mlx_ferrum.tensor import Layout, QTensor

from . import staged as staging
from .header import header

Shape = tuple[int, ...]
MOST = 8  # rows of x
LANES = 32
SIMDGROUPS = staging.SIMDGROUPS[False]
# Of kernels with an optional RMS norm of x, by whether it is there.
INPUTS = {False: ("x",), True: ("x", "norm", "eps")}
BODY = """
    int simdgroup = {simdgroup};
    matvec<ROWS, BATCH, BIAS, ADD>((const device Weight*)w, {input}, bias, add, y, w_shape[0], x_shape[1],
                                   ROWS * simdgroup, thread_index_in_simdgroup);
"""


def matvec(
    x: mx.array,
    w: QTensor,
    *,
    bias: mx.array | None = None,
    add: mx.array | None = None,
    rows: int = 4,
    staged: bool | None = None,
) -> mx.array:
    """Computes x wᵀ + bias + add in one launch, as float32.

    Staged activations are halves that share a scale in runs of 16: rounding changes a product by at most 2^-11 |w| |x|.

    x: (n, k) of a float type, n at most `MOST`, may be 0; w: (rows, k) of at least 8 words -> (n, rows)
    bias: (rows,); add: (n, rows)
    rows: rows of w per simdgroup; more rows save loads of x, fewer rows give more simdgroups
    staged: whether threadgroups share x in their memory, for n of at least 1; None: where that saves time
    """
    call = _call(x.shape, w.layout, rows, bias is not None, add is not None, staged=staged)
    (y,) = call([x, w.array, x if bias is None else bias, x if add is None else add])
    return y


@functools.lru_cache(KEPT)
def _call(x: Shape, w: Layout, rows: int, bias: bool, add: bool, *, staged: bool | None) -> Call:
    check(x, w)
    staged = staging.saves(x[0], w) if staged is None else staged
    simdgroups = staging.SIMDGROUPS[staged]
    tiles = -(-w.shape[0] // (rows * simdgroups))
    return _kernel(w.block.name, staged).prepare(
        template={"ROWS": rows, "BATCH": x[0], "BIAS": bias, "ADD": add},
        grid=(LANES * simdgroups * tiles, 1, 1),
        threadgroup=(LANES * simdgroups, 1, 1),
        output_shapes=[(x[0], w.shape[0])],
        output_dtypes=[mx.float32],
    )


def check(x: Shape, *ws: Layout) -> None:
    """Raises ValueError unless x is (n, k) with n at most `MOST` and every w (rows, k)."""
    if len(x) != 2 or x[0] > MOST:
        raise ValueError(f"matvec: x of shape {x}, expected at most {MOST} rows")
    for w in ws:
        if len(w.shape) != 2 or w.shape[1] != x[1]:
            raise ValueError(f"matvec: x of shape {x} does not fit {w}")


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
    return [x, weight, constant(eps)], True


@functools.cache
def _kernel(block: str, staged: bool) -> Kernel:
    return Kernel(
        name=f"{staging.prefix(staged=staged)}matvec_{block}",
        source=staging.body(BODY, staged=staged),
        inputs=("x", "w", "bias", "add"),
        outputs=("y",),
        header=header("staged.metal", Weight=block),
    )
