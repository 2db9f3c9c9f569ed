"""attend: attention of few rows of many sequences to keys and values in blocks; long contexts in runs."""

from __future__ import annotations

import functools
from typing import NamedTuple

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Header, Kernel, constant

from .append import LANES, Pool, Shape, mark_or_first
from .header import header

SIMDGROUPS = 4  # per threadgroup; each takes every fourth tile of keys
MOST_QUERIES = 8  # of a threadgroup; sums of values for more would not fit registers
RUN = 512  # keys of a run at least: four tiles for each simdgroup
THREADGROUPS = 256  # of the default
BODY = """
    threadgroup float4 queries[QUERIES * ((D + 31) / 32 * 8)];
    threadgroup int rows[SIMDGROUPS * 32];
    threadgroup float weights[SIMDGROUPS * QUERIES * 32];
    threadgroup float4 merged[SIMDGROUPS * RowShape<DV>::PADDED];
    threadgroup float highest[SIMDGROUPS * QUERIES];
    threadgroup float totals[SIMDGROUPS * QUERIES];
    uint3 place = threadgroup_position_in_grid;
    uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
    AttendShape shape = {q_shape[1], keys_shape[1], keys_shape[2], table_shape[1], window[0]};
    if (MARKS && place.x + place.y == 0 && thread_index_in_threadgroup == 0) stats[0] = 0;
    QueryTile tile = query_tile(starts, lengths, place.y, place.x % shape.groups, place.x / shape.groups * QUERIES,
                                QUERIES, place.z, threadgroups_per_grid.z, shape);
    if (tile.count <= 0) return;
    load_queries<D, QUERIES>(q, scale_softcap[0], queries, tile, shape.heads, thread_index_in_threadgroup,
                             32 * SIMDGROUPS);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    KeyTile key_tile = {rows + 32 * simdgroup, weights + 32 * QUERIES * simdgroup};
    Softmax<DV, QUERIES> softmax;
    softmax.clear();
    attend_keys<D>((const device Stored*)keys, (const device Stored*)values, key_scales, value_scales, table, queries,
                   key_tile, tile, shape, scale_softcap[1], softmax, simdgroup, SIMDGROUPS, lane);
    put_tile(softmax, merged, highest, totals, tile, shape, out, stats, SINKS, sinks,
             size_t(q_shape[0]) * shape.heads * place.z, simdgroup, SIMDGROUPS, lane);
"""
MERGE = """
    int head = SIMDGROUPS * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup;
    int heads = sums_shape[1] * sums_shape[2];
    if (head >= heads) return;
    merge_runs(sums, stats, out, SINKS, sinks, sums_shape[0], heads, head, head % sums_shape[2], sums_shape[3],
               thread_index_in_simdgroup);
"""


class Seen(NamedTuple):
    """What the rows of a batch see of a pool.

    starts: (sequences + 1,) int32, the first row of each sequence, then n
    lengths: (sequences,) int32, positions that each sequence holds, its rows included
    table: (sequences, width) int32, ids of blocks
    window: positions that a row sees, its own included; None: all before it
    rows: the most that a sequence has
    longest: positions that the longest sequence holds
    """

    starts: mx.array
    lengths: mx.array
    table: mx.array
    window: int | None
    rows: int
    longest: int


def attend(
    q: mx.array,
    pool: Pool,
    seen: Seen,
    *,
    scale: float,
    softcap: float = 0.0,
    sinks: mx.array | None = None,
    threadgroups: int = THREADGROUPS,
) -> tuple[mx.array, mx.array]:
    """One launch, or two where contexts are long and rows are few. The arguments are those of ops.attend.

    q: (n, h, d) -> (n, h, dv) float16, and the pool's mark
    threadgroups: as many as keep the GPU busy; contexts are split where there are fewer
    Results beyond ±65,504, the range of float16, are clamped to ±65,504; NaN stays NaN.
    Raises ValueError for shapes that do not fit together.
    """
    shapes = q.shape, pool.keys.shape, pool.values.shape
    visible = _visible(seen, threadgroups)
    plan = _plan(
        shapes,
        pool.bits,
        seen.lengths.size,
        seen.rows,
        visible=visible,
        sinks=sinks is not None,
        wanted=threadgroups,
    )
    given = constant(scale, softcap)
    held = given if sinks is None else sinks
    scales = pool.scales or (given, given)
    arrays = [q, pool.keys, pool.values, *scales, held, seen.starts, seen.lengths, seen.table]
    out, stats = plan.call([*arrays, whole(seen.window or 0), given, mark_or_first(pool.mark)])
    return (plan.merge([out, stats, held])[0] if plan.merge else out), stats


class Plan(NamedTuple):
    """The launch for batches of some shapes, and that which merges runs, if contexts are split."""

    call: Call
    merge: Call | None


@functools.lru_cache(KEPT)
def _plan(
    shapes: tuple[Shape, Shape, Shape],
    bits: int,
    sequences: int,
    rows: int,
    *,
    visible: int,
    sinks: bool,
    wanted: int,
) -> Plan:
    """rows: the most of a sequence; visible: whole runs of keys that these see; wanted: threadgroups"""
    (n, heads, d), keys, (_, groups, _, dv) = shapes
    if keys[3] != d or heads % groups:
        raise ValueError(f"attend: q {shapes[0]} does not fit keys in blocks of {keys}")
    tiles, queries = _tiles(rows * (heads // groups))
    runs = _runs(visible, tiles * groups * sequences, wanted)
    template = {"D": d, "DV": dv, "QUERIES": queries, "SIMDGROUPS": SIMDGROUPS}
    template |= {"SINKS": sinks and runs == 1, "MARKS": runs == 1}
    parts = [(runs, n, heads, width) for width in (dv, 2)]
    call = _kernel(bits).prepare(
        template=template,
        grid=(LANES * SIMDGROUPS * tiles * groups, sequences, runs),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(n, heads, dv), (1,)] if runs == 1 else parts,
        output_dtypes=[mx.float16 if runs == 1 else mx.float32, mx.float32],
    )
    return Plan(call, None if runs == 1 else _merging(n, heads, dv, sinks))


def _merging(n: int, heads: int, dv: int, sinks: bool) -> Call:
    """sums: (runs, n, h, dv), stats: (runs, n, h, 2) -> (n, h, dv)"""
    return _merge().prepare(
        template={"SIMDGROUPS": SIMDGROUPS, "SINKS": sinks},
        grid=(LANES * SIMDGROUPS * -(-n * heads // SIMDGROUPS), 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(n, heads, dv)],
        output_dtypes=[mx.float16],
    )


def _tiles(count: int) -> tuple[int, int]:
    """Tiles for so many queries of a sequence and group, and the queries of a tile: 1, 2, 4 or 8."""
    queries = 1
    while queries < min(count, MOST_QUERIES):
        queries *= 2
    return -(-count // queries), queries


def _runs(visible: int, threadgroups: int, wanted: int) -> int:
    """Runs of keys for so many threadgroups without."""
    return max(1, min(visible, wanted // threadgroups))


def _visible(seen: Seen, most: int) -> int:
    """Whole runs of keys that a row may see, as many as could be split."""
    longest = min(seen.longest, (seen.window or seen.longest) + seen.rows - 1)
    return min(longest // RUN, most)


@functools.lru_cache(KEPT)
def whole(number: int) -> mx.array:
    """(1,) int32, made once."""
    return mx.array([number], mx.int32)


@functools.cache
def _kernel(bits: int) -> Kernel:
    before = header("attend.metal")
    pool = ("keys", "values", "key_scales", "value_scales")
    batch = ("starts", "lengths", "table", "window", "scale_softcap")
    return Kernel(
        name=f"attend_{bits}",
        source=BODY,
        inputs=("q", *pool, "sinks", *batch, "last_mark"),
        outputs=("out", "stats"),
        header=Header(before.files, f"typedef {'char' if bits == 8 else 'half'} Stored;\n"),
    )


@functools.cache
def _merge() -> Kernel:
    return Kernel(
        name="merge_runs",
        source=MERGE,
        inputs=("sums", "stats", "sinks"),
        outputs=("out",),
        header=header("attend.metal"),
    )
