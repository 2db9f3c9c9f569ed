"""gate_up: act(x gateᵀ) * (x upᵀ) for a few rows of x."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel
from mlx_ferrum.tensor import QTensor

from .header import header
from .matvec import LANES, SIMDGROUPS, check

ACTIVATIONS = {"silu": 0, "gelu": 1}  # as in activation.metal
BODY = """
    int simdgroup = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    gate_up<ROWS, BATCH, ACT>((const device Gate*)gate, (const device Up*)up, x, y, gate_shape[0], x_shape[1],
                              ROWS * simdgroup, thread_index_in_simdgroup);
"""


def gate_up(x: mx.array, gate: QTensor, up: QTensor, act: str, *, rows: int = 2) -> mx.array:
    """One launch, in the type of x.

    x: (n, k) of a float type, n at most 8; gate, up: (rows, k) of at least 8 words -> (n, rows)
    act: of `ACTIVATIONS`
    rows: of each matrix, that a simdgroup takes
    """
    check(x, gate, up)
    if gate.rows != up.rows:
        raise ValueError(f"gate_up: {gate} and {up} differ in rows")
    tiles = -(-gate.rows // (rows * SIMDGROUPS))
    (y,) = _kernel(gate.block.name, up.block.name)(
        [x, gate.array, up.array],
        template={"ROWS": rows, "BATCH": x.shape[0], "ACT": ACTIVATIONS[act]},
        grid=(LANES * SIMDGROUPS * tiles, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(x.shape[0], gate.rows)],
        output_dtypes=[x.dtype],
    )
    return y


@functools.cache
def _kernel(gate: str, up: str) -> Kernel:
    return Kernel(
        name=f"gate_up_{gate}_{up}",
        source=BODY,
        inputs=("x", "gate", "up"),
        outputs=("y",),
        header=header("gate_up.metal", Gate=gate, Up=up),
    )
