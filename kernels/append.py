"""append: norm and rotary position embedding of queries and keys; keys and values into the blocks of a pool."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import mlx.core as mx

from mlx_ferrum.launch import Kernel, constant

from .header import header

LANES = 32
SIMDGROUPS = 4  # heads per threadgroup
FIRST_LAUNCH = 0  # the mark of a pool that no launch has used
BEGIN = """
    int n = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    uint lane = thread_index_in_simdgroup;
    AppendShape shape = {q_shape[0], q_shape[1], k_shape[1], q_shape[2], v_shape[2], frequencies_shape[0],
                         keys_shape[2]};
    int heads = shape.heads + shape.groups, row = n / heads, h = n % heads, g = h - shape.heads;
    if (row >= shape.rows) return;
    if (n == 0 && lane == 0) mark[0] = 0;
    HeadFactors factors = {magnitude_eps[0], magnitude_eps[1]};
    float turn_at = positions[row];
    if (g < 0) {
        size_t at = (size_t(row) * shape.heads + h) * shape.head_dim;
        return rotate_head<NORM, INTERLEAVED>(q + at, q_weight, frequencies, turned + at, turn_at, shape, factors,
                                              lane);
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


@dataclass(frozen=True)
class Pool:
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

    q: (n, h, d), k: (n, g, d), v: (n, g, dv) -> turned q: (n, h, d) float16, and the pool's mark
    positions: (n,) int32, slots: (n,) int64, block * size + the position within the block; all different
    Numbers beyond ±65,504, the range of float16, are clamped to ±65,504; NaN stays NaN.
    Raises ValueError for shapes that do not fit together.
    """
    _check(q, k, v, pool, frequencies, positions, slots)
    (n, heads, d), (groups, dv) = q.shape, v.shape[1:]
    q_weight, k_weight, eps = (frequencies, frequencies, 0.0) if norms is None else norms
    template = {"NORM": norms is not None, "INTERLEAVED": interleaved, "SIMDGROUPS": SIMDGROUPS}
    if pool.bits == 8:
        template["STAGED"] = d + dv
    blocks = -(-n * (heads + groups) // SIMDGROUPS)
    arrays = [q, k, v, q_weight, k_weight, frequencies, positions, slots]
    arrays += [
        constant(magnitude, eps),
        mark_of(pool),
        pool.keys,
        pool.values,
        *(pool.scales or ()),
    ]
    turned, mark = _kernel(pool.bits)(
        arrays,
        template=template,
        grid=(LANES * SIMDGROUPS * blocks, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[q.shape, (1,)],
        output_dtypes=[mx.float16, mx.float32],
    )
    return turned, mark


def mark_of(pool: Pool) -> mx.array:
    """The pool's mark, or an array in its place."""
    return constant(FIRST_LAUNCH) if pool.mark is None else pool.mark


def _check(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    pool: Pool,
    frequencies: mx.array,
    *rows: mx.array,
) -> None:
    (n, _, d), (groups, dv), size = q.shape, v.shape[1:], pool.keys.shape[2]
    if k.shape != (n, groups, d) or v.shape[0] != n or any(x.shape != (n,) for x in rows):
        raise ValueError(f"append: q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    if pool.keys.shape[1:] != (groups, size, d) or pool.values.shape[1:] != (groups, size, dv):
        found = f"{pool.keys.shape} and {pool.values.shape}"
        raise ValueError(f"append: blocks of {found} for k {k.shape} and v {v.shape}")
    if frequencies.ndim != 1 or 2 * frequencies.size > d:
        raise ValueError(f"append: {frequencies.shape} frequencies do not fit heads of {d}")


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
