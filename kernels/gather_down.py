"""gather_down: the weighted sum of the outputs of a token's experts, for few tokens."""

from __future__ import annotations

import functools
import math

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel
from mlx_ferrum.tensor import Layout, QTensor

from .gather_matvec import Ids, check
from .header import header
from .matvec import LANES, SIMDGROUPS, Shape

BODY = """
    ExpertShape shape = {count_experts(w_shape[0], EVERY), w_shape[1], x_shape[1], USED, EVERY};
    int simdgroup = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    int token = threadgroup_position_in_grid.y, pair = token * USED;
    size_t row = size_t(token) * shape.rows;
    gather_down<ROWS, ADD>((const device Weight*)w, x + size_t(pair) * shape.k, ids + pair, weights + pair,
                           ADD ? add + row : add, y + row, shape, ROWS * simdgroup, thread_index_in_simdgroup);
"""


def gather_down(
    x: mx.array,
    w: QTensor,
    ids: mx.array,
    weights: mx.array,
    *,
    add: mx.array | None = None,
    rows: int = 4,
) -> mx.array:
    """Computes Σ weights x w[id]ᵀ + add in one launch, as float32; NaN for a token with an id outside [0, e).

    x: (tokens * n, k) of a float type; w: (e, rows, k) of at least 8 words; ids, weights: (tokens, n)
        -> (tokens, rows)
    add: (tokens, rows)
    rows: rows of w per simdgroup
    """
    check_sum(ids, weights, add, w.shape[1])
    call = _call(x.shape, Ids(ids.shape, ids.dtype), w.layout, add is not None, rows)
    if not ids.shape[1]:
        return no_sum(add, ids.shape[0], w.shape[1])
    (y,) = call([x, w.array, ids, weights, x if add is None else add])
    return y


@functools.lru_cache(KEPT)
def _call(x: Shape, ids: Ids, w: Layout, add: bool, rows: int) -> Call:
    check(x, ids, w, tokens=math.prod(ids.shape))
    tokens, used = ids.shape
    tiles = -(-w.shape[1] // (rows * SIMDGROUPS))
    return _kernel(w.block.name).prepare(
        template={"ROWS": rows, "USED": used, "EVERY": w.every, "ADD": add},
        grid=(LANES * SIMDGROUPS * tiles, tokens, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(tokens, w.shape[1])],
        output_dtypes=[mx.float32],
    )


def check_sum(ids: mx.array, weights: mx.array, add: mx.array | None, d: int) -> None:
    """Raises ValueError unless weights have the shape of ids (tokens, n), and add is (tokens, d) or None."""
    if weights.shape != ids.shape:
        raise ValueError(f"gather: weights of shape {weights.shape} for ids of {ids.shape}")
    if add is not None and add.shape != (ids.shape[0], d):
        raise ValueError(f"gather: add of shape {add.shape}, expected {(ids.shape[0], d)}")


def no_sum(add: mx.array | None, tokens: int, d: int) -> mx.array:
    """The sum of no outputs + add: (tokens, d) float32."""
    return mx.zeros((tokens, d)) if add is None else add.astype(mx.float32)


@functools.cache
def _kernel(block: str) -> Kernel:
    return Kernel(
        name=f"gather_down_{block}",
        source=BODY,
        inputs=("x", "w", "ids", "weights", "add"),
        outputs=("y",),
        header=header("gather_down.metal", Weight=block),
    )
