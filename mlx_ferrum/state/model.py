"""The states of a model, from what its layers declare, and batches over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..batch import Batch
from .attention import AttentionState
from .kinds import KV
from .paged import BLOCK
from .pool import Pool
from .sequence import Sequence as Text
from .states import States
from .storage import Allocate, Storage


class ModelStates(States):
    """All that a model keeps of its sequences.

    keeps: what each layer declares
    blocks: of each window group; None: as many as are needed
    slack: positions behind a window that are kept, to go back by without computing them again
    """

    def __init__(
        self,
        keeps: Sequence[KV],
        allocate: Allocate,
        *,
        blocks: int | None = None,
        slack: int = 0,
        block: int = BLOCK,
    ) -> None:
        windows = list(dict.fromkeys(kv.window for kv in keeps if kv.shares is None))
        self.groups = [
            AttentionState(
                {i: kv for i, kv in enumerate(keeps) if kv.window == window and kv.shares is None},
                Pool(blocks),
                allocate,
                window=window,
                slack=slack,
                block=block,
            )
            for window in windows
        ]
        super().__init__(self.groups, block)
        owners = [i if kv.shares is None else kv.shares for i, kv in enumerate(keeps)]
        groups = [windows.index(keeps[i].window) for i in owners]
        self._layers = [
            (g, self.groups[g].storages[i]) for g, i in zip(groups, owners, strict=True)
        ]

    @property
    def storages(self) -> list[Storage]:
        """Of all layers that have their own."""
        return [storage for group in self.groups for storage in group.storages.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(storage.nbytes for storage in self.storages)

    def batch(self, rows: Sequence[tuple[Text, int]], tokens: Any) -> Batch:
        """The next `count` rows of each (sequence, count), once there is room for them.

        tokens: (n,) ids of all rows, one sequence after another
        Raises OutOfBlocksError, and ValueError for a sequence without rows or another number of tokens; nothing has
        changed then.
        """
        counts = [count for _, count in rows]
        if not rows or min(counts) < 1 or sum(counts) != len(tokens):
            raise ValueError(
                f"{len(tokens)} tokens for {counts} rows, expected one each, and rows of every sequence"
            )
        self.reserve(rows)
        new = [range(text.position, text.position + count) for text, count in rows]
        starts, positions = _rows(new)
        arrays = [
            state.arrays([text.parts[i] for text, _ in rows], new)
            for i, state in enumerate(self.groups)
        ]
        lengths = np.array([positions.stop for positions in new], np.int32)
        grown = sum(group.grown for group in self.groups)
        return Batch(rows, tokens, positions, starts, lengths, arrays, self._layers, grown)


def _rows(new: Sequence[range]) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each sequence, then n: (sequences + 1,); and the position of each row: (n,)."""
    firsts = np.array([positions.start for positions in new], np.int32)
    if all(len(positions) == 1 for positions in new):  # Python's share of a token counts here
        return _starts_of_one(len(new)), firsts
    counts = [len(positions) for positions in new]
    starts = np.zeros(len(new) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    return starts, np.arange(starts[-1], dtype=np.int32) + np.repeat(firsts - starts[:-1], counts)


@cache
def _starts_of_one(sequences: int) -> np.ndarray:
    """The first row of each sequence that has one row. Nobody writes to it."""
    return np.arange(sequences + 1, dtype=np.int32)
