"""gated_norm: RMS norm of each head, times SiLU of a gate."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant

from .append import LANES, Shape
from .header import header

SIMDGROUPS = 4  # heads of a threadgroup
BODY = """
    int head = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    if (head >= x_shape[0] * x_shape[1]) return;
    size_t at = size_t(head) * SIZE;
    gated_norm<SIZE>(x + at, weight, gate + at, y + at, eps[0], thread_index_in_simdgroup);
"""


def gated_norm(x: mx.array, weight: mx.array, eps: float, gate: mx.array) -> mx.array:
    """Computes x / sqrt(mean(x²) + eps) * weight * silu(gate) in one launch, as float32.

    x: (n, h, d), weight: (d,), gate: (n, h d), of float types -> (n, h d)
    Raises ValueError for shapes that do not fit together.
    """
    (y,) = _call(x.shape, weight.shape, gate.shape)([x, weight, gate, constant(eps)])
    return y


@functools.lru_cache(KEPT)
def _call(x: Shape, weight: Shape, gate: Shape) -> Call:
    n, heads, d = x
    if weight != (d,) or gate != (n, heads * d):
        raise ValueError(
            f"gated_norm: x {x} does not fit a weight of {weight} and a gate of {gate}"
        )
    return _kernel().prepare(
        template={"SIZE": d, "SIMDGROUPS": SIMDGROUPS},
        grid=(LANES * SIMDGROUPS * -(-n * heads // SIMDGROUPS), 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[gate],
        output_dtypes=[mx.float32],
    )


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="gated_norm",
        source=BODY,
        inputs=("x", "weight", "gate", "eps"),
        outputs=("y",),
        header=header("gated_norm.metal"),
    )
