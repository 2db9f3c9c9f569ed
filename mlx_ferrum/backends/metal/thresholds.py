"""Which kernel serves which shape: the numbers that depend on the GPU, one table a backend."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass
class Thresholds:
    """The numbers of one backend.

    matvec_rows: of x, 8 at most: up to here weights are read once for all of them, and no tile would be full
    few_rows: of w: below, a simdgroup takes fewer of them, so that there are enough simdgroups
    pairs_an_expert: on average, up to here every pair reads weights for itself
    threadgroups: enough for any GPU; attention with as many does not split contexts
    """

    matvec_rows: int
    few_rows: int
    pairs_an_expert: int
    threadgroups: int


# A weight takes an M1 Max 2 ps for every pair, as each reads for itself, and 6 ps of arithmetic for a tile of 16,
# however few pairs that holds (bench/metal_cost.py).
METAL = Thresholds(matvec_rows=8, few_rows=1024, pairs_an_expert=3, threadgroups=256)
# Metal's, until bench/cuda_thresholds.py has measured others on a card.
CUDA = Thresholds(matvec_rows=8, few_rows=1024, pairs_an_expert=3, threadgroups=256)

here = replace(METAL)  # the table in use; a call for it would cost every operation time


def use(table: Thresholds) -> None:
    """Choose by this table from now on: a part of using a backend."""
    for field in fields(table):
        setattr(here, field.name, getattr(table, field.name))
