"""rotate: norm and rotary position embedding of queries and keys; keys and values in the layout of the KV cache."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel

from .header import header

LANES = 32
SIMDGROUPS = 4  # heads per threadgroup
BODY = """
    int head = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    HeadShape shape = {q_shape[0], q_shape[1],  q_shape[2],           k_shape[2],
                       q_shape[3], v_shape[3], frequencies_shape[0], offset_shape[0]};
    if (head >= shape.batch * shape.length * (shape.heads + shape.kv_heads)) return;
    HeadFactors factors = {magnitude_eps[0], magnitude_eps[1]};
    rotate<NORM, INTERLEAVED>(q, k, v, q_weight, k_weight, frequencies, offset, rotated_q, new_kv, shape, factors,
                              head, thread_index_in_simdgroup);
"""


def rotate(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    frequencies: mx.array,
    *,
    offset: int | mx.array,
    interleaved: bool,
    magnitude: float,
    norms: tuple[mx.array, mx.array, float] | None,
) -> tuple[mx.array, mx.array]:
    """One launch. The arguments are those of ops.append.

    q: (b, l, h, d), k: (b, l, g, d), v: (b, l, g, dv) -> (b, h, l, d) and (2, b, g, l, max(d, dv)), float16
    Results beyond ±65,504, the range of float16, are clamped to ±65,504; NaN stays NaN.
    """
    (b, length, heads, d), (groups, dv) = q.shape, v.shape[2:]
    if k.shape != (b, length, groups, d) or v.shape[:2] != (b, length):
        raise ValueError(f"rotate: q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    if frequencies.ndim != 1 or 2 * frequencies.size > d:
        raise ValueError(f"rotate: {frequencies.shape} frequencies do not fit heads of {d}")
    offsets = mx.array(offset, mx.int32).reshape(-1)
    if offsets.size not in (1, b):
        raise ValueError(f"rotate: {offsets.size} offsets for {b} sequences")
    q_weight, k_weight, eps = (frequencies, frequencies, 0.0) if norms is None else norms
    factors = mx.array([magnitude, eps], mx.float32)
    blocks = -(-b * length * (heads + groups) // SIMDGROUPS)
    rotated_q, new_kv = _kernel()(
        [q, k, v, q_weight, k_weight, frequencies, offsets, factors],
        template={"NORM": norms is not None, "INTERLEAVED": interleaved, "SIMDGROUPS": SIMDGROUPS},
        grid=(LANES * SIMDGROUPS * blocks, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(b, heads, length, d), (2, b, groups, length, max(d, dv))],
        output_dtypes=[mx.float16] * 2,
    )
    return rotated_q, new_kv


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="rotate",
        source=BODY,
        inputs=("q", "k", "v", "q_weight", "k_weight", "frequencies", "offset", "magnitude_eps"),
        outputs=("rotated_q", "new_kv"),
        header=header("rotate.metal"),
    )
