"""norm_rope: RMS norm of each head, where there is one, then rotary position embedding."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel

from .header import header

LANES = 32
SIMDGROUPS = 4  # heads of a threadgroup
BODY = """
    int head = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    RopeShape shape = {x_shape[1], x_shape[2], x_shape[3], frequencies_shape[0], offset_shape[0]};
    if (head >= x_shape[0] * shape.length * shape.heads) return;
    HeadFactors factors = {magnitude_eps[0], magnitude_eps[1]};
    norm_rope<NORM, INTERLEAVED>(x, weight, frequencies, offset, y, shape, factors, head, thread_index_in_simdgroup);
"""


def norm_rope(
    x: mx.array,
    frequencies: mx.array,
    *,
    offset: int | mx.array,
    interleaved: bool,
    magnitude: float,
    norm: tuple[mx.array, float] | None,
) -> mx.array:
    """x: (b, l, h, d) -> (b, h, l, d), in the type of x; the arguments are those of ops.norm_rope."""
    b, length, heads, d = x.shape
    if frequencies.ndim != 1 or 2 * frequencies.size > d:
        raise ValueError(f"norm_rope: {frequencies.shape} frequencies do not fit heads of {d}")
    offsets = mx.array(offset, mx.int32).reshape(-1)
    if offsets.size not in (1, b):
        raise ValueError(f"norm_rope: {offsets.size} offsets for {b} sequences")
    weight, eps = (frequencies, 0.0) if norm is None else norm
    groups = -(-b * length * heads // SIMDGROUPS)
    (y,) = _kernel()(
        [x, weight, frequencies, offsets, mx.array([magnitude, eps], mx.float32)],
        template={"NORM": norm is not None, "INTERLEAVED": interleaved, "SIMDGROUPS": SIMDGROUPS},
        grid=(LANES * SIMDGROUPS * groups, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(b, heads, length, d)],
        output_dtypes=[x.dtype],
    )
    return y


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="norm_rope",
        source=BODY,
        inputs=("x", "weight", "frequencies", "offset", "magnitude_eps"),
        outputs=("y",),
        header=header("norm_rope.metal"),
    )
