"""gather_matvec: x w[id]ᵀ for few tokens, each with its own experts."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel
from mlx_ferrum.tensor import Layout, QTensor

from .header import header
from .matvec import LANES, SIMDGROUPS, Shape

BODY = """
    ExpertShape shape = {count_experts(w_shape[0], EVERY), w_shape[1], x_shape[1], USED, EVERY};
    int simdgroup = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    gather_matvec<ROWS, BIAS>((const device Weight*)w, x, ids, bias, y, shape, threadgroup_position_in_grid.y,
                              ROWS * simdgroup, thread_index_in_simdgroup);
"""


def gather_matvec(
    x: mx.array, w: QTensor, ids: mx.array, *, bias: mx.array | None = None, rows: int = 4
) -> mx.array:
    """Computes x w[id]ᵀ + bias in one launch, as float32; NaN for an id outside [0, e).

    x: (tokens, k) of a float type; w: (e, rows, k) of at least 8 words; ids: (tokens, n) -> (tokens * n, rows)
    bias: (e, rows)
    rows: rows of w per simdgroup
    """
    given = None if bias is None else bias.shape
    (y,) = _call(x.shape, Ids(ids.shape, ids.dtype), w.layout, given, rows)(
        [x, w.array, ids, x if bias is None else bias]
    )
    return y


class Ids(NamedTuple):
    """Of an array of expert ids."""

    shape: Shape
    dtype: mx.Dtype


@functools.lru_cache(KEPT)
def _call(x: Shape, ids: Ids, w: Layout, bias: Shape | None, rows: int) -> Call:
    check(x, ids, w, tokens=ids.shape[0])
    if bias is not None and bias != w.shape[:2]:
        raise ValueError(f"gather: a bias of shape {bias} does not fit {w}")
    tiles, pairs = -(-w.shape[1] // (rows * SIMDGROUPS)), math.prod(ids.shape)
    return _kernel(w.block.name).prepare(
        template={"ROWS": rows, "USED": ids.shape[1], "EVERY": w.every, "BIAS": bias is not None},
        grid=(LANES * SIMDGROUPS * tiles, pairs, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(pairs, w.shape[1])],
        output_dtypes=[mx.float32],
    )


def check(x: Shape, ids: Ids, *ws: Layout, tokens: int) -> None:
    """Raises ValueError unless x is (tokens, k), ids are integers (…, n) and every w is (e, rows, k)."""
    if len(ids.shape) != 2 or not mx.issubdtype(ids.dtype, mx.integer):
        raise ValueError(f"gather: ids are {ids.dtype} {ids.shape}, expected integers (tokens, n)")
    for w in ws:
        if len(w.shape) != 3 or x != (tokens, w.shape[2]):
            raise ValueError(f"gather: x of shape {x} does not fit {tokens} rows of {w}")
        if w.shape != (*ws[0].shape[:2], w.shape[2]):
            raise ValueError(f"gather: {w} and {ws[0]} differ in rows")


@functools.cache
def _kernel(block: str) -> Kernel:
    return Kernel(
        name=f"gather_matvec_{block}",
        source=BODY,
        inputs=("x", "w", "ids", "bias"),
        outputs=("y",),
        header=header("gather_matvec.metal", Weight=block),
    )
