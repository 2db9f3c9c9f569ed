"""The states of a model, from what its layers declare, and batches over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..batch import Batch
from .attention import AttentionState
from .kinds import KV, Keeps, Recurrent
from .paged import BLOCK
from .pool import Pool
from .recurrent import RecurrentState
from .sequence import Sequence as Text
from .states import States
from .storage import Allocate

LEAST_SLOTS = 8


class ModelStates(States):
    """All that a model keeps of its sequences.

    keeps: what each layer declares
    blocks: of each window group; None: as many as are needed
    slots: for recurrent states, of which a sequence takes 2 to 4 and a snapshot one; None: as many as fit the bytes of
        the blocks, or as are needed
    slack: positions behind a window that are kept, to go back by without computing them again
    """

    def __init__(
        self,
        keeps: Sequence[Keeps],
        allocate: Allocate,
        *,
        blocks: int | None = None,
        slots: int | None = None,
        slack: int = 0,
        block: int = BLOCK,
    ) -> None:
        self.groups: list[AttentionState | RecurrentState] = [
            AttentionState(layers, Pool(blocks), allocate, window=window, slack=slack, block=block)
            for window, layers in _windows(keeps).items()
        ]
        recurrent = {i: kind for i, kind in enumerate(keeps) if isinstance(kind, Recurrent)}
        if recurrent:
            if slots is None and blocks is not None:
                slots = _slots(keeps, recurrent, blocks * block)
            self.groups.append(RecurrentState(recurrent, allocate, slots=slots, block=block))
        super().__init__(self.groups, block)
        places = {
            i: (g, s) for g, group in enumerate(self.groups) for i, s in group.storages.items()
        }
        self._layers = [places[_owner(i, kind)] for i, kind in enumerate(keeps)]

    @property
    def storages(self) -> list[Any]:
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


def _windows(keeps: Sequence[Keeps]) -> dict[int | None, dict[int, KV]]:
    """The attention layers that have their own keys and values, by their windows."""
    found: dict[int | None, dict[int, KV]] = {}
    for i, kind in enumerate(keeps):
        if isinstance(kind, KV) and kind.shares is None:
            found.setdefault(kind.window, {})[i] = kind
    return found


def _owner(layer: int, kind: Keeps) -> int:
    """The layer whose storage a layer uses."""
    return layer if isinstance(kind, Recurrent) or kind.shares is None else kind.shares


def _slots(keeps: Sequence[Keeps], recurrent: dict[int, Recurrent], positions: int) -> int:
    """As many slots as take the bytes of keys and values of so many positions, and enough for two sequences."""
    heads = [kind for kind in keeps if isinstance(kind, KV) and kind.shares is None]
    nbytes = sum(kv.heads * (kv.key_dim + kv.value_dim) * kv.bits // 8 for kv in heads)
    return max(LEAST_SLOTS, positions * nbytes // sum(kind.nbytes for kind in recurrent.values()))


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
