"""gate_up: act(x gateᵀ) * (x upᵀ) for a few rows of x."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel
from mlx_ferrum.options import Activation
from mlx_ferrum.tensor import Layout, QTensor

from . import staged as staging
from .activation import ACTIVATIONS
from .header import header
from .matvec import INPUTS, LANES, Shape, check, normed_input

BODY = """
    int simdgroup = {simdgroup};
    gate_up<ROWS, BATCH, ACT>((const device Gate*)gate, (const device Up*)up, {input}, y, gate_shape[0], x_shape[1],
                              ROWS * simdgroup, thread_index_in_simdgroup);
"""


def gate_up(
    x: mx.array,
    gate: QTensor,
    up: QTensor,
    act: Activation,
    *,
    norm: tuple[mx.array, float] | None = None,
    rows: int = 2,
    staged: bool | None = None,
) -> mx.array:
    """Computes act(x gateᵀ) * (x upᵀ) in one launch, as float32.

    x: (n, k) of a float type, n at most 8; gate, up: (rows, k) of at least 8 words -> (n, rows)
    act: one of `ACTIVATIONS`
    norm: weight (k,) and epsilon of an RMS norm of x before the products
    rows: rows of each matrix per simdgroup
    staged: as for matvec
    """
    inputs, has_norm = normed_input(x, norm)
    call = _call(x.shape, gate.layout, up.layout, act, rows, has_norm=has_norm, staged=staged)
    (y,) = call([*inputs, gate.array, up.array])
    return y


@functools.lru_cache(KEPT)
def _call(
    x: Shape,
    gate: Layout,
    up: Layout,
    act: Activation,
    rows: int,
    *,
    has_norm: bool,
    staged: bool | None,
) -> Call:
    check(x, gate, up)
    staged = staging.saves(x[0], gate, up) if staged is None else staged
    if gate.shape != up.shape:
        raise ValueError(f"gate_up: {gate} and {up} differ in rows")
    simdgroups = staging.SIMDGROUPS[staged]
    tiles = -(-gate.shape[0] // (rows * simdgroups))
    return _kernel(has_norm, staged, gate.block.name, up.block.name).prepare(
        template={"ROWS": rows, "BATCH": x[0], "ACT": ACTIVATIONS[act]},
        grid=(LANES * simdgroups * tiles, 1, 1),
        threadgroup=(LANES * simdgroups, 1, 1),
        output_shapes=[(x[0], gate.shape[0])],
        output_dtypes=[mx.float32],
    )


@functools.cache
def _kernel(has_norm: bool, staged: bool, gate: str, up: str) -> Kernel:
    return Kernel(
        name=f"{staging.prefix(staged=staged, norm=has_norm)}gate_up_{gate}_{up}",
        source=staging.body(BODY, staged=staged, norm=has_norm),
        inputs=(*INPUTS[has_norm], "gate", "up"),
        outputs=("y",),
        header=header("gate_up.metal", Gate=gate, Up=up),
    )
