"""A cache of a few sequences: what `model.make_cache()` gives and `model(tokens, cache=…)` reads and extends."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Protocol, SupportsIndex

import mlx.core as mx
import numpy as np

from . import amounts, ops
from .batch import Batch
from .state.kinds import KV, Keeps
from .state.model import ModelStates
from .state.sequence import Sequence as Text

SLACK = 512  # positions behind a window that are kept, to go back by without computing them again


class Model(Protocol):
    """What a cache needs to know of a model."""

    fingerprint: str

    @property
    def body(self) -> Any:
        """A Decoder."""


class Cache:
    """Keys and values of sequences that grow in step, in blocks of their own, and the states of recurrent layers.

    states: the blocks of all layers; None until the first tokens come
    """

    def __init__(self, keeps: Sequence[Keeps], fingerprint: str = "") -> None:
        self.keeps, self.fingerprint = list(keeps), fingerprint
        self.states: ModelStates | None = None
        self.sequences: list[Text] = []
        self._backend = ""

    @property
    def offset(self) -> int:
        """Positions that all sequences hold."""
        return min((sequence.position for sequence in self.sequences), default=0)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the first sequence, as far as they are known."""
        return list(self.sequences[0].tokens) if self.sequences else []

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return 0 if self.states is None else self.states.nbytes

    @property
    def arrays(self) -> list[Any]:
        """All storage, for mx.eval."""
        storages = () if self.states is None else self.states.storages
        return [x for storage in storages for x in storage.arrays]

    def __repr__(self) -> str:
        attention = [keeps for keeps in self.keeps if isinstance(keeps, KV)]
        windows = sorted({keeps.window for keeps in attention if keeps.window})
        recurrent = len(self.keeps) - len(attention)
        said = [f"{len(self.keeps)} layers" + (f", {recurrent} recurrent" if recurrent else "")]
        said += [f"windows of {', '.join(map(str, windows))}"] if windows else []
        said += [f"{len(self.sequences)} sequences"] if len(self.sequences) > 1 else []
        return f"Cache({', '.join(said)}, {self.offset} positions, {amounts.size(self.nbytes)})"

    def batch(self, tokens: Any) -> Batch:
        """The next tokens of the sequences: (b, l), a row for each. The first tokens say how many sequences there are.

        Once they are computed, `advance` of the batch makes them part of the cache.
        Raises ValueError for another number of sequences, or if another backend made the cache.
        """
        states, count = self.start(), tokens.shape[0]
        if not self.offset and len(self.sequences) != count:
            self.sequences = [states.begin() for _ in range(count)]
        if len(self.sequences) != count:
            raise ValueError(
                f"the cache holds {len(self.sequences)} sequences, expected {count}: it is of another batch"
            )
        if count > 1:
            self.rewind(self.offset)  # an interruption may have kept some of them from moving on
        rows = [(sequence, tokens.shape[1]) for sequence in self.sequences]
        if not (ops.is_lazy() and isinstance(tokens, mx.array)):
            tokens = np.asarray(tokens, np.int64)
        return states.batch(rows, tokens.reshape(-1))

    def start(self) -> ModelStates:
        """The blocks, made by the backend in use if there are none. Raises ValueError if another one made them."""
        if self.states is None:
            self.states = ModelStates(self.keeps, ops.allocate, slack=SLACK)
            self._backend = ops.backend_name()
        if self._backend != ops.backend_name():
            raise ValueError(
                f"the cache was made by the {self._backend} backend, {ops.backend_name()} is in use"
            )
        return self.states

    def rewind(self, position: int) -> int:
        """Forget all positions from `position` on; more of them, where a window's blocks are gone.

        Returns the positions that are held now. Raises ValueError for more than are held, or no whole number.
        """
        if type(position) is bool or not isinstance(position, SupportsIndex):
            raise ValueError(f"rewind to {position!r}, expected a whole number")
        position = operator.index(position)
        if not 0 <= position <= self.offset:
            raise ValueError(f"rewind to {position}, expected 0 to {self.offset}")
        while self.states is not None and any(x.position != position for x in self.sequences):
            # each sequence may reach less: the others follow
            position = min(self.states.rewind(each, position) for each in self.sequences)
        return self.offset

    def note(self, tokens: Sequence[Sequence[int]]) -> None:
        """Say which tokens (b, n) went in where a batch held arrays that were not computed yet."""
        assert self.states is not None
        for sequence, ids in zip(self.sequences, tokens, strict=True):
            self.states.note(sequence, ids)

    def settle(self) -> None:
        """Forget positions whose tokens nobody noted, as an interruption may leave some."""
        known = min((len(each.tokens) for each in self.sequences), default=0)
        if known < self.offset:
            self.rewind(known)

    def fork(self) -> Cache:
        """A cache with the same past, which shares its blocks: use both in one thread, or in turn."""
        other = Cache(self.keeps, self.fingerprint)
        other.states, other._backend = self.states, self._backend
        if self.states is not None:
            other.sequences = [self.states.fork(each) for each in self.sequences]
        return other

    def __copy__(self) -> Cache:
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return self.fork()  # which goes on as if alone, as a copy of the memory would


def check_cache(cache: Any, model: Model) -> None:
    """Raises ValueError unless `cache` is what `model.make_cache()` gives."""
    if not isinstance(cache, Cache):
        found = type(cache).__name__
        raise ValueError(f"the cache is a {found}, expected what model.make_cache() gives")
    theirs, ours = cache.fingerprint, model.fingerprint
    layers = len(model.body.layers)
    if theirs != ours or len(cache.keeps) != layers:
        raise ValueError(
            f"the cache is of another model: it has {len(cache.keeps)} layers, the model {layers}"
        )
