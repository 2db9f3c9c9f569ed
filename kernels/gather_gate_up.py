"""gather_gate_up: act(x gate[id]ᵀ) * (x up[id]ᵀ) for few tokens, each with its own experts."""

from __future__ import annotations

import functools
import math

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel
from mlx_ferrum.options import Activation
from mlx_ferrum.tensor import Layout, QTensor

from .activation import ACTIVATIONS
from .gather_matvec import Ids, check
from .header import header
from .matvec import LANES, SIMDGROUPS, Shape

BODY = """
    ExpertShape shape = {count_experts(gate_shape[0], EVERY), gate_shape[1], x_shape[1], USED, EVERY};
    int simdgroup = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    gather_gate_up<ROWS, ACT>((const device Gate*)gate, (const device Up*)up, x, ids, y, shape,
                              threadgroup_position_in_grid.y, ROWS * simdgroup, thread_index_in_simdgroup);
"""


def gather_gate_up(
    x: mx.array, gate: QTensor, up: QTensor, ids: mx.array, act: Activation, *, rows: int = 2
) -> mx.array:
    """Computes act(x gate[id]ᵀ) * (x up[id]ᵀ) in one launch, as float32; NaN for an id outside [0, e).

    x: (tokens, k) of a float type; gate, up: (e, rows, k) of at least 8 words; ids: (tokens, n) -> (tokens * n, rows)
    act: one of `ACTIVATIONS`
    rows: rows of each matrix per simdgroup
    """
    call = _call(x.shape, Ids(ids.shape, ids.dtype), gate.layout, up.layout, act, rows=rows)
    (y,) = call([x, gate.array, up.array, ids])
    return y


@functools.lru_cache(KEPT)
def _call(x: Shape, ids: Ids, gate: Layout, up: Layout, act: Activation, *, rows: int) -> Call:
    check(x, ids, gate, up, tokens=ids.shape[0])
    if gate.every != up.every:
        raise ValueError(f"gather: matrices of {gate} and {up} lie differently far apart")
    tiles, pairs = -(-gate.shape[1] // (rows * SIMDGROUPS)), math.prod(ids.shape)
    return _kernel(gate.block.name, up.block.name).prepare(
        template={"ROWS": rows, "USED": ids.shape[1], "EVERY": gate.every, "ACT": ACTIVATIONS[act]},
        grid=(LANES * SIMDGROUPS * tiles, pairs, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(pairs, gate.shape[1])],
        output_dtypes=[mx.float32],
    )


@functools.cache
def _kernel(gate: str, up: str) -> Kernel:
    return Kernel(
        name=f"gather_gate_up_{gate}_{up}",
        source=BODY,
        inputs=("x", "gate", "up", "ids"),
        outputs=("y",),
        header=header("gather_gate_up.metal", Gate=gate, Up=up),
    )
