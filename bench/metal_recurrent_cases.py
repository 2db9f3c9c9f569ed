"""Launches of a recurrent layer that read and write its states, at the sizes of Qwen3.6-35B-A3B.

`read` is of the state, of the rows for gated_norm; a product is a number of a state and a row for gated_delta, a
channel of a row for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
from metal_cases import Case
from metal_recurrent import Delta, states

SIZES = Delta(key_heads=16, heads=32, size=128)
READ = {"short_conv": "columns", "gated_delta": "matrices", "gated_norm": "x"}


def recurrent(*batches: int, sizes: Delta = SIZES) -> Iterator[Case]:
    """One text of each number of rows."""
    for rows in batches:
        for launch in states(sizes):
            each = sizes.size if launch.name == "gated_delta" else 1
            width = sizes.values if each > 1 else launch.k
            run = partial(launch.run, mx.zeros((rows, launch.k)))
            least = launch.held or 4 * rows * launch.k
            yield Case(
                f"{launch.name} {rows}", run, (READ[launch.name],), least, rows * width * each
            )
