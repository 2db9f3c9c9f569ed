"""append: norm and rotary position embedding of queries and keys; keys and values into the blocks of a pool."""

from __future__ import annotations

import functools
from typing import NamedTuple

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant

from .header import header

Shape = tuple[int, ...]
LANES = 32
SIMDGROUPS = 4  # heads per threadgroup
FIRST_LAUNCH = 0  # the mark of a pool that no launch has used
BEGIN = """
    int n = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    uint lane = thread_index_in_simdgroup;
    AppendShape shape = {q_shape[0], q_shape[1], k_shape[1], k_shape[2], v_shape[2], frequencies_shape[0],
                         keys_shape[2]};
    int heads = shape.heads + shape.groups, row = n / heads, h = n % heads, g = h - shape.heads;
    if (row >= shape.rows) return;
    if (n == 0 && lane == 0) mark[0] = 0;
    HeadFactors factors = {magnitude_eps[0], magnitude_eps[1]};
    float turn_at = positions[row];
    if (g < 0) {
        size_t head = size_t(row) * shape.heads + h;
        return rotate_head<NORM, INTERLEAVED>(q + head * q_shape[2], q_weight, frequencies,
                                              turned + head * shape.head_dim, turn_at, shape, factors, lane);
    }
    size_t from = size_t(row) * shape.groups + g, to = pool_row(slots[row], g, shape);
"""
STORE = (
    BEGIN
    + """
    store_head<NORM, INTERLEAVED>(k + from * shape.head_dim, v + from * shape.value_dim, k_weight, frequencies,
                                  (device half*)keys, (device half*)values, to, turn_at, shape, factors, lane);
"""
)
STORE_NARROW = (
    """
    threadgroup float staged[SIMDGROUPS * STAGED];
"""
    + BEGIN
    + """
    store_narrow_head<NORM, INTERLEAVED>(k + from * shape.head_dim, v + from * shape.value_dim, k_weight, frequencies,
                                         (device char*)keys, (device char*)values, (device float*)key_scales,
                                         (device float*)value_scales,
                                         staged + STAGED * simdgroup_index_in_threadgroup, to, turn_at, shape,
                                         factors, lane);
"""
)


class Pool(NamedTuple):
    """Keys and values of one layer in blocks, as launches take them.

    keys: (blocks, g, size, d), values: (blocks, g, size, dv), float16, or int8 with scales
    scales: of keys and of values, each (blocks, g, size) float32; None with float16
    mark: what the last launch that read or wrote them made; None: there was none. A launch that takes it runs after
        that one, which MLX cannot know of arrays that are written in place.
    """

    keys: mx.array
    values: mx.array
    scales: tuple[mx.array, mx.array] | None
    mark: mx.array | None

    @property
    def bits(self) -> int:
        """Of a number."""
        return 8 * self.keys.itemsize


def append(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    pool: Pool,
    frequencies: mx.array,
    *,
    positions: mx.array,
    slots: mx.array,
    interleaved: bool,
    magnitude: float,
    norms: tuple[mx.array, mx.array, float] | None,
) -> tuple[mx.array, mx.array]:
    """One launch, which writes the pool in place. The arguments are those of ops.append.

    q: (n, h, d) or (n, h, 2 d), k: (n, g, d), v: (n, g, dv) -> turned q: (n, h, d) float16, and the pool's mark
    positions: (n,) int32, slots: (n,) int64, block * size + the position within the block; all different
    Numbers beyond ±65,504, the range of float16, are clamped to ±65,504; NaN stays NaN.
    Raises ValueError for shapes that do not fit together.
    """
    if positions.shape != q.shape[:1] or slots.shape != q.shape[:1]:
        raise ValueError(
            f"append: {positions.size} positions and {slots.size} slots for q {q.shape}"
        )
    shapes = q.shape, k.shape, v.shape, pool.keys.shape, pool.values.shape, frequencies.shape
    call = _call(shapes, pool.bits, norms is not None, interleaved)
    q_weight, k_weight, eps = (frequencies, frequencies, 0.0) if norms is None else norms
    arrays = [q, k, v, q_weight, k_weight, frequencies, positions, slots]
    arrays += [
        constant(magnitude, eps),
        mark_or_first(pool.mark),
        pool.keys,
        pool.values,
        *(pool.scales or ()),
    ]
    turned, mark = call(arrays)
    return turned, mark


@functools.lru_cache(KEPT)
def _call(shapes: tuple[Shape, ...], bits: int, norm: bool, interleaved: bool) -> Call:
    _check(*shapes)
    (n, heads, _), (_, groups, d), (*_, dv), *_ = shapes
    template = {"NORM": norm, "INTERLEAVED": interleaved, "SIMDGROUPS": SIMDGROUPS}
    if bits == 8:
        template["STAGED"] = d + dv
    blocks = -(-n * (heads + groups) // SIMDGROUPS)
    return _kernel(bits).prepare(
        template=template,
        grid=(LANES * SIMDGROUPS * blocks, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(n, heads, d), (1,)],
        output_dtypes=[mx.float16, mx.float32],
    )


def mark_or_first(mark: mx.array | None) -> mx.array:
    """The mark, or an array in its place."""
    return constant(FIRST_LAUNCH) if mark is None else mark


def _check(q: Shape, k: Shape, v: Shape, keys: Shape, values: Shape, frequencies: Shape) -> None:
    (groups, d), dv, size = k[1:], v[2], keys[2]
    if q[2] not in (d, 2 * d) or not q[0] == k[0] == v[0] or v[1] != groups:
        raise ValueError(f"append: q {q}, k {k} and v {v} do not fit together")
    if keys[1:] != (groups, size, d) or values[1:] != (groups, size, dv):
        raise ValueError(f"append: blocks of {keys} and {values} for k {k} and v {v}")
    if len(frequencies) != 1 or 2 * frequencies[0] > d:
        raise ValueError(f"append: {frequencies} frequencies do not fit heads of {d}")


@functools.cache
def _kernel(bits: int) -> Kernel:
    scales = ("key_scales", "value_scales") if bits == 8 else ()
    written = ("keys", "values", *scales)
    read = ("q", "k", "v", "q_weight", "k_weight", "frequencies", "positions", "slots")
    return Kernel(
        name=f"append_{bits}",
        source=STORE_NARROW if bits == 8 else STORE,
        inputs=(*read, "magnitude_eps", "last_mark", *written),
        outputs=("turned", "mark"),
        header=header("append.metal"),
        writes=written,
    )
