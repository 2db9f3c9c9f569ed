"""attend_rows: attention of many rows over keys and values in blocks, in tiles of 32 rows."""

from __future__ import annotations

import functools
import math

import mlx.core as mx

from mlx_ferrum.launch import Kernel, constant

from .attend import whole
from .header import header

THREADS = 128
QUERY_ROWS = 32  # of a tile, as in attend_rows.metal
MOST = 256  # numbers of a head
EVERYTHING = 2**31 - 1  # the window of rows that see all positions
INPUTS = (
    *("q", "keys", "values", "key_scales", "value_scales"),
    *("starts", "lengths", "table", "sinks", "factors", "window"),
)
BODY = """
    if (threadgroup_position_in_grid.x == 0 && thread_index_in_threadgroup == 0) mark[0] = 0;
    threadgroup uint4 memory[HeadTile<D, DV>::MEMORY];
    threadgroup int slots[2 * HeadTile<D, DV>::KEYS];
    PagedShape shape = {q_shape[1], keys_shape[1], keys_shape[2], table_shape[1], lengths_shape[0], window[0]};
    attend_rows<D, DV, SOFTCAP, SINKS>(q, keys, values, key_scales, value_scales, starts, lengths, table, sinks, y,
                                       shape, float2(factors[0], factors[1]), threadgroup_position_in_grid.x, memory,
                                       slots, thread_index_in_threadgroup);
"""


def attend_rows(
    q: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scales: tuple[mx.array, mx.array] | None,
    starts: mx.array,
    lengths: mx.array,
    table: mx.array,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Causal attention of the rows of all sequences, each over the positions that its sequence holds, in one launch.

    Queries are first rounded to float16. Queries, 8-bit keys and values times their scales, and results beyond
    ±65,504, the range of float16, are clamped to it; NaN stays NaN.

    q: (n, heads, d) float16 or float32, the rows of each sequence one after another -> (n, heads, dv) float16,
        and the mark of the pool, see `append.Pool`
    keys: (blocks, groups, size, d), values: (blocks, groups, size, dv), float16, or int8 with scales; d and dv are
        multiples of 8 up to 256
    scales: of keys and values, each (blocks, groups, size) float32
    starts: (sequences + 1,) int32, the first row of each sequence, then n
    lengths: (sequences,) int32, positions that a sequence holds; its rows are the last of them
    table: (sequences, width) int32, the blocks of each sequence; only entries of positions that rows see are read
    window: how many positions a row sees, its own included; 0: all
    softcap: bound of scores; 0: none
    sinks: (heads,) of a float type, scores that take part in the softmax without a value

    Raises ValueError for shapes and types that do not fit.
    """
    _check(q, keys, values, scales)
    _check_sequences(q, starts, lengths, table)
    n, heads, d = q.shape
    groups, dv = keys.shape[1], values.shape[3]
    _check_options(heads, window, softcap, sinks)
    if n == 0:
        return mx.zeros((0, heads, dv), mx.float16), constant(0)
    key_scales, value_scales = (keys, keys) if scales is None else scales
    factors = (scale / softcap, softcap / math.log(2)) if softcap else (scale / math.log(2), 0.0)
    inputs = [q, keys, values, key_scales, value_scales, starts, lengths, table]
    inputs += [q if sinks is None else sinks, constant(*factors), whole(window or EVERYTHING)]
    y, mark = _kernel()(
        inputs,
        template={"D": d, "DV": dv, "SOFTCAP": bool(softcap), "SINKS": sinks is not None},
        grid=(THREADS * groups * _tiles(n * heads // groups, min(n, lengths.size)), 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(n, heads, dv), (1,)],
        output_dtypes=[mx.float16, mx.float32],
    )
    return y, mark


def _tiles(rows: int, sequences: int) -> int:
    """The most tiles that `rows` rows of so many sequences fill: the last tile of each may hold one row only."""
    return (rows + (QUERY_ROWS - 1) * sequences) // QUERY_ROWS


def _check(
    q: mx.array, keys: mx.array, values: mx.array, scales: tuple[mx.array, mx.array] | None
) -> None:
    shapes = f"q of shape {q.shape}, keys {keys.shape} and values {values.shape}"
    if q.ndim != 3 or keys.ndim != 4 or values.ndim != 4 or keys.shape[:3] != values.shape[:3]:
        raise ValueError(f"attend_rows: {shapes} do not fit together")
    sizes = keys.shape[3], values.shape[3]
    if keys.shape[3] != q.shape[2] or q.shape[1] % keys.shape[1]:
        raise ValueError(f"attend_rows: {shapes} do not fit together")
    if any(size % 8 or not 8 <= size <= MOST for size in sizes):
        raise ValueError(f"attend_rows: heads of {sizes}, expected multiples of 8 up to {MOST}")
    if q.dtype not in (mx.float16, mx.float32):
        raise ValueError(f"attend_rows: q of {q.dtype}, expected float16 or float32")
    stored = mx.float16 if scales is None else mx.int8
    if (keys.dtype, values.dtype) != (stored, stored):
        raise ValueError(
            f"attend_rows: keys of {keys.dtype} and values of {values.dtype}, expected {stored}"
        )
    for x in scales or ():
        if x.shape != keys.shape[:3] or x.dtype != mx.float32:
            raise ValueError(
                f"attend_rows: scales {x.shape} of {x.dtype}, expected {keys.shape[:3]} of float32"
            )


def _check_sequences(q: mx.array, starts: mx.array, lengths: mx.array, table: mx.array) -> None:
    arrays = {"starts": starts, "lengths": lengths, "table": table}
    for name, x in arrays.items():
        if x.dtype != mx.int32:
            raise ValueError(f"attend_rows: {name} of {x.dtype}, expected int32")
    if table.ndim != 2 or lengths.shape != table.shape[:1] or starts.shape != (len(table) + 1,):
        shapes = {name: x.shape for name, x in arrays.items()}
        raise ValueError(f"attend_rows: {shapes} do not fit together")
    if not table.size and len(q):
        raise ValueError(f"attend_rows: a table of shape {table.shape} for {len(q)} rows")


def _check_options(heads: int, window: int, softcap: float, sinks: mx.array | None) -> None:
    if window < 0 or softcap < 0:
        raise ValueError(f"attend_rows: window {window} and softcap {softcap}, expected 0 or more")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"attend_rows: sinks of shape {sinks.shape}, expected ({heads},)")
    if sinks is not None and not mx.issubdtype(sinks.dtype, mx.floating):
        raise ValueError(f"attend_rows: sinks of {sinks.dtype}, expected a float type")


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="attend_rows",
        source=BODY,
        inputs=INPUTS,
        outputs=("y", "mark"),
        header=header("attend_rows.metal"),
    )
