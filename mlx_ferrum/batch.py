"""What one forward pass computes: new rows of some sequences, of any number and at any positions.

Rows of all sequences lie one after another (ragged), so prompts can be read beside sequences that generate. Positions,
lengths and block tables are arrays, which a recorded step reads anew each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from .state.sequence import Sequence as Text
from .state.storage import KVStorage, RecurrentStorage


@dataclass
class Paging:
    """Where the sequences of a batch lie in the blocks of one window group.

    table: (sequences, width) int32, ids of blocks; block i of a row holds positions i * size ... (i + 1) * size - 1
    slots: (n,) int64, where each row's key and value go: block * size + the position within the block
    """

    table: np.ndarray
    slots: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the order of the fields."""
        return self.table, self.slots

    @cached_property
    def mlx_slots(self) -> mx.array:
        """The slots for a backend that computes with MLX."""
        return mx.array(self.slots)

    @cached_property
    def mlx_table(self) -> mx.array:
        """The block tables for a backend that computes with MLX."""
        return mx.array(self.table)


@dataclass
class Slots:
    """Which slots of the recurrent states a pass reads and writes, for each sequence of a batch.

    sources: (sequences,) int32, the state before the rows; -1 for zeros
    targets: (sequences,) int32, where the state after the rows goes; none of them is a source
    """

    sources: np.ndarray
    targets: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the order of the fields."""
        return self.sources, self.targets

    @cached_property
    def mlx_sources(self) -> mx.array:
        """The sources for a backend that computes with MLX."""
        return mx.array(self.sources)

    @cached_property
    def mlx_targets(self) -> mx.array:
        """The targets for a backend that computes with MLX."""
        return mx.array(self.targets)


@dataclass
class Place:
    """What an attention layer reads and writes in a pass: its keys and values, and where the batch lies in them."""

    batch: Batch
    paging: Paging
    storage: KVStorage


@dataclass
class RecurrentPlace:
    """What a recurrent layer reads and writes in a pass: its states, and the slots of the batch in them."""

    batch: Batch
    slots: Slots
    storage: RecurrentStorage


@dataclass
class Batch:
    """The rows of one forward pass.

    rows: each sequence and how many new rows it has
    tokens: (n,) int64 ids; an mx.array where they are not computed yet
    positions: (n,) int32, of each row in its sequence
    starts: (sequences + 1,) int32, the first row of each sequence, then n
    lengths: (sequences,) int32, positions that each sequence holds once the rows are computed
    states: for each state of the model where the sequences lie in it: a Paging of each window group, and Slots where
        layers are recurrent
    layers: for each layer the index of its state, and its storage
    grown: how often storage had grown, and so was moved
    shared: what a backend computes once for all layers
    """

    rows: Sequence[tuple[Text, int]]
    tokens: Any
    positions: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    states: list[Any]
    layers: list[tuple[int, Any]] = field(repr=False)
    grown: int = 0
    shared: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def mlx_positions(self) -> mx.array:
        """The positions for a backend that computes with MLX."""
        return mx.array(self.positions)

    @cached_property
    def mlx_starts(self) -> mx.array:
        """The first rows for a backend that computes with MLX."""
        return mx.array(self.starts)

    @cached_property
    def mlx_lengths(self) -> mx.array:
        """The lengths for a backend that computes with MLX."""
        return mx.array(self.lengths)

    def last(self, x: Any) -> Any:
        """Of x (n, …) the last row of each sequence, whose logits say what comes next: (sequences, …)."""
        if self.decodes:
            return x
        rows = self.starts[1:] - 1
        return x[rows if isinstance(x, np.ndarray) else mx.array(rows)]

    @property
    def decodes(self) -> bool:
        """Whether every sequence has one row."""
        return len(self.positions) == len(self.lengths)

    def layer(self, index: int) -> Any:
        """What layer `index` reads and writes: a Place, or a RecurrentPlace."""
        number, storage = self.layers[index]
        state = self.states[number]
        kind = RecurrentPlace if isinstance(state, Slots) else Place
        return kind(self, state, storage)

    def advance(self) -> None:
        """Say that the rows are computed. Ids of tokens that are not computed yet have to be noted later."""
        ids = self.tokens.tolist() if isinstance(self.tokens, np.ndarray) else None
        start = 0
        for sequence, count in self.rows:
            known = ids[start : start + count] if ids is not None else ()
            sequence.owner.advance(sequence, count, known)
            start += count
