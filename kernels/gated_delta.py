"""gated_delta: the gated delta rule, from and into slots of matrices."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant
from mlx_ferrum.options import Delta

from .append import LANES, Shape, mark_or_first
from .header import header
from .short_conv import Turns

MOST = 256  # rows and columns of a matrix
CHUNK = 8  # rows of a sequence that are staged together
BODY = """
    threadgroup float4 keys[CHUNK * DeltaTile<SIZE>::PADDED / 4];
    threadgroup float4 queries[CHUNK * DeltaTile<SIZE>::PADDED / 4];
    threadgroup float values[CHUNK * 32];
    threadgroup float4 factors[CHUNK];
    threadgroup float2 parts[2 * DeltaTile<SIZE>::SIMDGROUPS * 32];
    DeltaStage stage = {(threadgroup float*)keys, (threadgroup float*)queries, values, factors, parts};
    uint3 place = threadgroup_position_in_grid;
    if (place.x + place.y == 0 && thread_index_in_threadgroup == 0) mark[0] = 0;
    DeltaHead head = delta_head(place.x, a_shape[1], qkv_shape[1], SIZE, TILED);
    DeltaFactors given = {decay[head.head], dt[head.head], eps[0]};
    delta_rows<SIZE, CHUNK>(qkv, a, b, matrices, (device float*)matrices, o, given, head, stage, starts[place.y],
                            starts[place.y + 1], sources[place.y], targets[place.y], simdgroup_index_in_threadgroup,
                            thread_index_in_simdgroup);
"""


def gated_delta(
    qkv: mx.array,
    a: mx.array,
    b: mx.array,
    matrices: mx.array,
    turns: Turns,
    *,
    delta: Delta,
    mark: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """One launch, which writes the matrices in place. The arguments are those of ops.gated_delta.

    qkv: (n, C) float32, q, k and v of heads one after another; a, b: (n, Hv) of a float type
    matrices: (slots, Hv, S, S) float32
    mark: as that of a Pool
    -> o (n, Hv, S) float32, and the next mark
    Raises ValueError for shapes that do not fit together, and NotImplementedError for S above `MOST`.
    """
    turns.check("gated_delta")
    decay, dt = delta.decay, delta.dt
    shapes = qkv.shape, a.shape, b.shape, matrices.shape, decay.shape, dt.shape
    call = _call(shapes, turns.sources.size, turns.rows > 1, delta.is_tiled)
    given = [qkv, a, b, decay, dt, constant(delta.eps)]
    o, made = call([*given, *turns.arrays, mark_or_first(mark), matrices])
    return o, made


@functools.lru_cache(KEPT)
def _call(shapes: tuple[Shape, ...], sequences: int, many: bool, tiled: bool) -> Call:
    """many: whether a sequence has several rows"""
    _check(*shapes)
    (n, _), _, _, (_, heads, size, _), *_ = shapes
    slabs = simdgroups = -(-size // LANES)
    return _kernel().prepare(
        template={"SIZE": size, "CHUNK": CHUNK if many else 1, "TILED": tiled},
        grid=(LANES * simdgroups * slabs * heads, sequences, 1),
        threadgroup=(LANES * simdgroups, 1, 1),
        output_shapes=[(n, heads, size), (1,)],
        output_dtypes=[mx.float32, mx.float32],
    )


def _check(qkv: Shape, a: Shape, b: Shape, matrices: Shape, decay: Shape, dt: Shape) -> None:
    (n, channels), (_, heads, size, _) = qkv, matrices
    key_heads, rest = divmod(channels - heads * size, 2 * size)
    if rest or key_heads < 1 or heads % key_heads or matrices[3] != size:
        raise ValueError(f"gated_delta: {channels} channels do not fit matrices of {matrices}")
    if a != (n, heads) or b != a or decay != (heads,) or dt != decay:
        raise ValueError(
            f"gated_delta: a {a}, b {b}, decay {decay} and dt {dt} for {n} rows of {heads} heads"
        )
    if size > MOST:
        raise NotImplementedError(f"gated_delta: matrices of {size} rows, expected at most {MOST}")


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="gated_delta",
        source=BODY,
        inputs=(
            *("qkv", "a", "b", "decay", "dt", "eps"),
            *("starts", "sources", "targets", "last_mark", "matrices"),
        ),
        outputs=("o", "mark"),
        header=header("gated_delta.metal"),
        writes=("matrices",),
    )
