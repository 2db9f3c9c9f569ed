"""matvecs: products of a few rows of x with several weights, which may differ in type, in one launch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel
from mlx_ferrum.tensor import Layout, QTensor

from . import staged as staging
from .header import header
from .matvec import INPUTS, LANES, Shape, check, normed_input

MOST = 4  # weights
BODY = """
    int simdgroup = {simdgroup};
    matvecs<ROWS, BATCH>({input}, x_shape[1], simdgroup, thread_index_in_simdgroup, {projections});
"""
PROJECTION = "make_projection<BIAS{i}>((const device Weight{i}*)w{i}, bias{i}, y{i}, w{i}_shape[0])"


def matvecs(
    x: mx.array,
    ws: Sequence[QTensor],
    biases: Sequence[mx.array | None],
    *,
    norm: tuple[mx.array, float] | None = None,
    rows: int = 4,
    staged: bool | None = None,
) -> list[mx.array]:
    """Computes x wᵀ + bias for each w, as float32.

    x: (n, k) of a float type, n at most 8; ws: up to `MOST` of (rows, k), of at least 8 words -> each (n, rows)
    biases: (rows,) or None for each
    norm: weight (k,) and epsilon of an RMS norm of x before the products
    rows: rows of a weight per simdgroup
    staged: as for matvec
    """
    inputs, has_norm = normed_input(x, norm)
    has_bias = tuple([bias is not None for bias in biases])
    call = _call(x.shape, tuple([w.layout for w in ws]), has_bias, has_norm, rows, staged=staged)
    given = [x if bias is None else bias for bias in biases]
    return call([*inputs, *[w.array for w in ws], *given])


@functools.lru_cache(KEPT)
def _call(
    x: Shape,
    ws: tuple[Layout, ...],
    biases: tuple[bool, ...],
    has_norm: bool,
    rows: int,
    *,
    staged: bool | None,
) -> Call:
    check(x, *ws)
    staged = staging.saves(x[0], *ws) if staged is None else staged
    simdgroups = staging.SIMDGROUPS[staged]
    tiles = sum(-(-w.shape[0] // (rows * simdgroups)) for w in ws)
    template = {"ROWS": rows, "BATCH": x[0]}
    return _kernel(has_norm, staged, *(w.block.name for w in ws)).prepare(
        template=template | {f"BIAS{i}": has_bias for i, has_bias in enumerate(biases)},
        grid=(LANES * simdgroups * tiles, 1, 1),
        threadgroup=(LANES * simdgroups, 1, 1),
        output_shapes=[(x[0], w.shape[0]) for w in ws],
        output_dtypes=[mx.float32] * len(ws),
    )


@functools.cache
def _kernel(has_norm: bool, staged: bool, *blocks: str) -> Kernel:
    numbers = range(len(blocks))
    projections = ", ".join(PROJECTION.format(i=i) for i in numbers)
    return Kernel(
        name="_".join([f"{staging.prefix(staged=staged, norm=has_norm)}matvecs", *blocks]),
        source=staging.body(BODY, staged=staged, norm=has_norm, projections=projections),
        inputs=(*INPUTS[has_norm], *(f"w{i}" for i in numbers), *(f"bias{i}" for i in numbers)),
        outputs=tuple(f"y{i}" for i in numbers),
        header=header("matvecs.metal", **{f"Weight{i}": block for i, block in enumerate(blocks)}),
    )
