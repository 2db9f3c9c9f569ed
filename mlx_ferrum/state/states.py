"""Everything that a model keeps of all its sequences."""

from __future__ import annotations

import sys
from collections import abc

from ..interrupts import uninterrupted
from .kinds import State
from .paged import BLOCK
from .sequence import Sequence, extend_keys


class States:
    """All states of a model, and the life of sequences in them.

    states: one for each kind of state and window; each has a pool of its own
    block: positions in a block, the same in all states
    Raises ValueError if a state has another block size, or the pool of another state.
    """

    def __init__(self, states: abc.Sequence[State], block: int = BLOCK) -> None:
        sizes = {state.block for state in states} - {block}
        if sizes:
            raise ValueError(f"states with blocks of {sorted(sizes)} positions, expected {block}")
        if len({id(state.pool) for state in states}) < len(states):
            raise ValueError("two states have the same pool, expected a pool for each")
        self.states = list(states)
        self.block = block

    @uninterrupted()
    def begin(self, tokens: abc.Sequence[int] = ()) -> Sequence:
        """A new sequence that starts with the longest prefix of `tokens` that all states hold.

        `position` says how long that is: whole blocks, and at most len(tokens) - 1 positions, so that a row is left
        to compute.
        """
        keys: list[bytes] = []
        extend_keys(keys, tokens, self.block)
        start = self._longest(keys, len(tokens) - 1)
        del keys[start // self.block :]
        parts = [state.begin(keys, start) for state in self.states]
        return Sequence(list(tokens[:start]), start, parts, keys, start, self)

    @uninterrupted()
    def resume(self, tokens: abc.Sequence[int], firsts: abc.Sequence[int]) -> Sequence:
        """A sequence of `tokens`, whose contents the caller writes before anything else happens.

        firsts: for each state the index of the first block that has contents
        Raises ValueError if a state needs earlier blocks, OutOfBlocksError.
        """
        keys: list[bytes] = []
        extend_keys(keys, tokens, self.block)
        pairs = zip(self.states, firsts, strict=True)
        parts = [state.resume(len(tokens), first) for state, first in pairs]
        return Sequence(list(tokens), len(tokens), parts, keys, len(tokens), self)

    def _longest(self, keys: abc.Sequence[bytes], most: int) -> int:
        """The longest start that all states have: a state with a window may have a long one and no shorter one."""
        longest, most = (most, 0) if self.states and most > 0 else (0, 0)
        while longest != most:
            most = longest
            for state in self.states:
                longest = state.longest(keys, longest)
        return longest

    def room(self) -> int:
        """The number of blocks that every state can still take. sys.maxsize if no pool has a size."""
        return min((state.pool.free for state in self.states), default=sys.maxsize)

    def whole(self, sequence: Sequence, count: int) -> int:
        """How many of the next `count` rows of a prompt a pass should compute, so that what it leaves is of use."""
        for state in self.states:
            count = state.whole(sequence.position, count)
        return count

    def reserve(self, wanted: abc.Sequence[tuple[Sequence, int]]) -> None:
        """Make the next `count` positions of each (sequence, count) writable, or change nothing.

        What sequences need is added up as if each were alone, so blocks that one of them frees do not count for
        another. Raises OutOfBlocksError, and ValueError for a freed sequence, one that is named twice, or a negative
        count.
        """
        for sequence, count in wanted:
            self._check(sequence, count)
        if len(wanted) > 1 and len({id(sequence) for sequence, _ in wanted}) < len(wanted):
            raise ValueError("a sequence is named twice, expected each sequence once")
        for index, state in enumerate(self.states):
            needed = 0
            for sequence, count in wanted:
                part, known = sequence.parts[index], len(sequence.tokens)
                needed += state.needed(part, sequence.position, count, known)
            if needed:
                state.pool.check(needed)
        for sequence, count in wanted:
            for state, part in zip(self.states, sequence.parts, strict=True):
                state.reserve(part, sequence.position, count, len(sequence.tokens))
            sequence.reserved = sequence.position + count

    def advance(self, sequence: Sequence, count: int, tokens: abc.Sequence[int] = ()) -> None:
        """Move on by `count` reserved rows, which were computed.

        tokens: the known ids among them, from the first row on; `note` gives the others later
        Raises ValueError if the rows were not reserved, or if the ids of earlier rows are missing.
        """
        self._check(sequence, count)
        position = sequence.position + count
        if position > sequence.reserved:
            reserved = sequence.reserved - sequence.position
            raise ValueError(f"advance by {count} rows, expected at most the {reserved} reserved")
        if tokens:
            known = len(sequence.tokens)
            if known < sequence.position:
                raise ValueError(
                    f"token ids of rows from {sequence.position} on, expected those from {known} on first"
                )
            self._check_tokens(tokens, count)
        self._move(sequence, position)
        if tokens:
            self._learn(sequence, tokens)

    @uninterrupted()
    def _move(self, sequence: Sequence, position: int) -> None:
        before = sequence.position
        for state, part in zip(self.states, sequence.parts, strict=True):
            state.advance(part, before, position - before)
        sequence.position = position

    def note(self, sequence: Sequence, tokens: abc.Sequence[int]) -> None:
        """Give the ids of the next rows whose ids are not known yet; full blocks are published.

        Raises ValueError for more ids than rows.
        """
        self._check(sequence, 0)
        self._check_tokens(tokens, sequence.position - len(sequence.tokens))
        self._learn(sequence, tokens)

    def _learn(self, sequence: Sequence, tokens: abc.Sequence[int]) -> None:
        known = sequence.tokens
        known += tokens
        if len(known) // self.block > len(sequence.keys):
            self._publish(sequence)

    @uninterrupted()
    def _publish(self, sequence: Sequence) -> None:
        extend_keys(sequence.keys, sequence.tokens, self.block)
        for state, part in zip(self.states, sequence.parts, strict=True):
            state.publish(part, sequence.keys, len(sequence.tokens))

    @uninterrupted()
    def fork(self, sequence: Sequence) -> Sequence:
        """A second sequence with the same past. Both have to reserve before they advance."""
        self._check(sequence, 0)
        parts = [state.fork(part) for state, part in zip(self.states, sequence.parts, strict=True)]
        sequence.reserved = position = sequence.position
        tokens, keys = sequence.tokens.copy(), sequence.keys.copy()
        return Sequence(tokens, position, parts, keys, position, self)

    @uninterrupted()
    def rewind(self, sequence: Sequence, position: int) -> int:
        """Go back to `position`, or to the highest position before it that all states reach; returns it.

        Raises ValueError for a position beyond the sequence's, or below 0.
        """
        self._check(sequence, 0)
        if not 0 <= position <= sequence.position:
            raise ValueError(f"rewind to {position}, expected 0 to {sequence.position}")
        pairs = list(zip(self.states, sequence.parts, strict=True))
        before = None
        while position != before:
            before = position
            for state, part in pairs:
                position = state.reach(part, sequence.keys, position)
        for state, part in pairs:
            state.rewind(part, sequence.keys, position)
        sequence.position = sequence.reserved = position
        del sequence.tokens[position:]
        del sequence.keys[position // self.block :]
        return position

    @uninterrupted()
    def free(self, sequence: Sequence) -> None:
        """End a sequence. A new one can still start with its published blocks, until they are evicted."""
        self._check(sequence, 0)
        for state, part in zip(self.states, sequence.parts, strict=True):
            state.free(part)
        sequence.owner = None

    def _check(self, sequence: Sequence, count: int) -> None:
        if sequence.owner is not self:
            raise ValueError(f"{sequence} is freed or another model's, expected a live one")
        if count < 0:
            raise ValueError(f"count is {count}, expected at least 0")

    @staticmethod
    def _check_tokens(tokens: abc.Sequence[int], most: int) -> None:
        if len(tokens) > most:
            raise ValueError(f"{len(tokens)} token ids, expected at most {most}")
