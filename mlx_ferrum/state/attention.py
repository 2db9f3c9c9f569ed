"""The keys and values of all layers that have the same window: block tables, and the arrays that they point into."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import numpy as np

from ..batch import Paging
from .kinds import KV
from .paged import Paged, Part
from .pool import Pool
from .storage import Allocate, KVStorage, Stored

WIDTH = 16  # of a table at least; it grows by doubling, as a recorded step is made for one width


class AttentionState(Stored[KVStorage], Paged):
    """A State of one window group."""

    def __init__(
        self,
        layers: Mapping[int, KV],
        pool: Pool,
        allocate: Allocate,
        *,
        window: int | None,
        slack: int,
        block: int,
    ) -> None:
        super().__init__(pool, self._copy_block, window=window, slack=slack, block=block)
        self.storages = {i: KVStorage(kv, block, allocate) for i, kv in layers.items()}
        # the last table, and of which parts at which versions; it keeps them, so identities are not reused
        self._table: tuple[list[Part], list[int], np.ndarray] | None = None

    def _copy_block(self, source: int, target: int) -> None:
        self.grow()
        for storage in self.storages.values():
            storage.copy(source, target)

    def arrays(self, parts: Sequence[Part], positions: Sequence[range]) -> Paging:
        """Where the rows at `positions` of each sequence go, and where its blocks lie."""
        self.grow()
        size = self.block
        slots = [
            part.blocks[p // size] * size + p % size
            for part, new in zip(parts, positions, strict=True)
            for p in new
        ]
        return Paging(self._table_of(parts), np.array(slots, np.int64))

    def _table_of(self, parts: Sequence[Part]) -> np.ndarray:
        """The same array as long as no table changes."""
        versions = [part.version for part in parts]
        if self._table is not None:
            before, known, table = self._table
            if known == versions and all(map(operator.is_, before, parts)):
                return table
        width = WIDTH
        while width < max((len(part.blocks) for part in parts), default=0):
            width *= 2
        table = np.zeros((len(parts), width), np.int32)
        for row, part in zip(table, parts, strict=True):
            blocks = _row_of(part)
            row[: len(blocks)] = blocks
        self._table = (list(parts), versions, table)
        return table


def _row_of(part: Part) -> np.ndarray:
    """The part's blocks; those behind the window, which nothing reads, are 0."""
    if part.row is None or part.row[0] != part.version:
        part.row = part.version, np.maximum(np.array(part.blocks, np.int32), 0)
    row: np.ndarray = part.row[1]
    return row
