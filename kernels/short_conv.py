"""short_conv: the short convolution of a recurrent layer with SiLU, from and into slots of columns."""

from __future__ import annotations

import functools
from typing import NamedTuple

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel

from .append import Shape, mark_or_first
from .header import header

THREADS = 128
RUN = 16  # rows of a thread
BODY = """
    uint3 place = thread_position_in_grid;
    if (place.x + place.y + place.z == 0) mark[0] = 0;
    RowRun run = row_run(starts, place.y, place.z, RUN);
    if (run.begin > 0 && run.begin >= run.rows) return;
    short_conv<TAPS>(x, weight, columns, (device float*)columns, y, run, sources[place.y], targets[place.y], place.x,
                     x_shape[1]);
"""


class Turns(NamedTuple):
    """The sequences of a batch, and the slots from which and into which they go.

    starts: (sequences + 1,) int32, the first row of each sequence, then n
    sources: (sequences,) int32, slots that are read; -1: zeros
    targets: (sequences,) int32, slots that are written; all different, and none of the sources
    rows: the most that a sequence has
    """

    starts: mx.array
    sources: mx.array
    targets: mx.array
    rows: int

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """As kernels take them."""
        return self.starts, self.sources, self.targets

    def check(self, name: str) -> None:
        """Raises ValueError for slots of other sequences than the rows."""
        count = self.starts.size - 1
        if self.sources.shape != (count,) or self.targets.shape != (count,):
            raise ValueError(
                f"{name}: {self.sources.size} sources and {self.targets.size} targets for {count} sequences"
            )


def short_conv(
    x: mx.array, weight: mx.array, columns: mx.array, turns: Turns, *, mark: mx.array | None
) -> tuple[mx.array, mx.array]:
    """One launch, which writes the columns in place: silu(Σ weight[c, j] * x[t - (K - 1) + j]), as float32.

    x: (n, C) of a float type, weight: (C, K), columns: (slots, K - 1, C) float32, the newest last
    mark: as that of a Pool
    -> (n, C), and the next mark
    Raises ValueError for shapes that do not fit together.
    """
    turns.check("short_conv")
    call = _call(x.shape, weight.shape, columns.shape, turns.sources.size, -(-turns.rows // RUN))
    y, made = call([x, weight, *turns.arrays, mark_or_first(mark), columns])
    return y, made


@functools.lru_cache(KEPT)
def _call(x: Shape, weight: Shape, columns: Shape, sequences: int, runs: int) -> Call:
    channels, taps = weight
    if x[1:] != (channels,) or taps < 2 or columns[1:] != (taps - 1, channels):
        raise ValueError(
            f"short_conv: x {x} does not fit a weight of {weight} and columns of {columns}"
        )
    return _kernel().prepare(
        template={"TAPS": taps, "RUN": RUN},
        grid=(channels, sequences, max(runs, 1)),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[x, (1,)],
        output_dtypes=[mx.float32, mx.float32],
    )


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="short_conv",
        source=BODY,
        inputs=("x", "weight", "starts", "sources", "targets", "last_mark", "columns"),
        outputs=("y", "mark"),
        header=header("short_conv.metal"),
        writes=("columns",),
    )
