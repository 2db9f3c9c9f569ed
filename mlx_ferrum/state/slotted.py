"""Slots of the recurrent states of sequences, and the snapshots to which they can go back. Knows no arrays.

A state cannot be cut back to an earlier position, so a pass reads one slot of a sequence and writes another one: it
can be repeated, a fork shares a slot, and a snapshot is a slot that is left alone. Nothing is ever copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..interrupts import uninterrupted
from .pool import Pool

SNAPSHOTS = 16
PRIVATE = b"private snapshot "  # how keys begin that are no hashes, which have 16 bytes
_numbers = itertools.count()


@dataclass(slots=True)
class Snapshot:
    """A slot that was kept. The pool has it by `key`, until it is evicted.

    is_passing: taken while one row at a time was computed; the next one takes its place
    """

    position: int
    key: bytes
    is_passing: bool = False


@dataclass(slots=True)
class Part:
    """The slots of one sequence.

    held: (position, slot) in order of position; the last one is the state now. None: the sequence is at its beginning
    target: what the next pass writes; -1: nothing is reserved
    snapshots: in order of position
    is_prompt: whether the last pass computed more than one row
    """

    held: list[tuple[int, int]] = field(default_factory=list)
    target: int = -1
    snapshots: list[Snapshot] = field(default_factory=list)
    is_prompt: bool = False

    @property
    def source(self) -> int:
        """The slot that the next pass reads, -1 for zeros."""
        return self.held[-1][1] if self.held else -1


class Slotted:
    """A State: one slot for the states of all recurrent layers of a sequence at a position.

    Snapshots are taken where prompts' passes end, at ends of blocks, and where a prompt follows generated tokens. The
    pool keeps them as it keeps blocks: they count as free, and the one that was used least recently is evicted first.
    block: positions in a block; only a snapshot at the end of one can be found by a new sequence
    snapshots: of one sequence at most; older ones lie further apart
    """

    def __init__(self, pool: Pool, block: int, snapshots: int = SNAPSHOTS) -> None:
        self.pool, self.block, self.unit = pool, block, "slots of recurrent states"
        self.most_snapshots = max(snapshots, 1)

    def longest(self, keys: Sequence[bytes], most: int) -> int:
        """The highest end of a block <= most at which there is a snapshot, or 0."""
        ends = range(min(len(keys), most // self.block), 0, -1)
        found = (end for end in ends if self.pool.find(keys[end - 1]) is not None)
        return next(found, 0) * self.block

    def begin(self, keys: Sequence[bytes], position: int) -> Part:
        """The part of a new sequence that starts at `position`. Raises ValueError if there is no snapshot."""
        if not position:
            return Part()
        slot = self.pool.find(keys[position // self.block - 1])
        if slot is None or position % self.block:
            raise ValueError(f"start at {position}, expected a position with a snapshot")
        self.pool.share(slot)
        return Part([(position, slot)])

    def resume(self, position: int, first: int) -> Part:
        """The part of a sequence of `position` positions, whose slot the caller fills. first: 0"""
        if first:
            raise ValueError(f"slots from block {first} on, expected 0")
        return Part([(position, self.pool.take())] if position else [])

    def restore(self, part: Part, position: int) -> int:
        """A snapshot at an earlier position for a part that `resume` gave; returns its slot, which the caller fills."""
        slot, key = self.pool.take(), _private()
        self.pool.publish(slot, key)
        self.pool.release(slot)
        self._add(part, Snapshot(position, key))
        return slot

    def needed(self, part: Part, position: int, count: int, known: int) -> int:
        """The free slots that `reserve` needs, less those that it frees first."""
        if not count or part.target >= 0:
            return 0
        freed = part.held[: self._old(part, known)]
        return max(0, 1 - sum(self.pool.references[slot] == 1 for _, slot in freed))

    def most(self, positions: int, count: int) -> int:
        """The most slots that a sequence holds: before a token that is not known, after it, now, and the next one."""
        return min(4, positions + 1)

    def whole(self, position: int, count: int) -> int:
        """Up to the last end of a block, where there is one: a new sequence can only find a snapshot there."""
        end = (position + count) // self.block * self.block
        return end - position if end > position else count

    def reserve(self, part: Part, position: int, count: int, known: int) -> None:
        """Takes the slot that the next pass writes. Raises OutOfBlocksError; nothing has changed then."""
        if not count or part.target >= 0:
            return
        self.pool.check(self.needed(part, position, count, known))
        with uninterrupted():
            if count > 1 and not part.is_prompt:
                self._keep_private(part)
            old = self._old(part, known)
            self._release(part.held[:old])
            del part.held[:old]
            part.target = self.pool.take()

    @staticmethod
    def _old(part: Part, known: int) -> int:
        """How many of the held slots nobody goes back to: those before the last one at `known` or earlier.

        Where ids stay unknown, only the last three are held.
        """
        old = max((i for i, (position, _) in enumerate(part.held) if position <= known), default=0)
        return max(old, len(part.held) - 3)

    def advance(self, part: Part, position: int, count: int) -> None:
        """The target is the state now."""
        if not count:
            return
        if part.target < 0:
            raise ValueError(f"advance from {position} by {count}, expected reserved rows")
        part.held.append((position + count, part.target))
        part.target, part.is_prompt = -1, count > 1
        if part.is_prompt:
            self._keep_private(part)

    def _keep_private(self, part: Part) -> None:
        """A snapshot of the state now that only this sequence finds, unless a block ends here.

        Only in a pool that grows: in others nobody goes back to such positions.
        """
        if not part.held or self.pool.size is not None:
            return
        position, slot = part.held[-1]
        if position % self.block == 0 or self.pool.has_key(slot):
            return
        key = _private()
        self.pool.publish(slot, key)
        self._add(part, Snapshot(position, key))

    def publish(self, part: Part, keys: Sequence[bytes], known: int) -> None:
        """Make the held states at ends of blocks, below position `known`, findable as snapshots."""
        for i, (position, slot) in enumerate(part.held):
            is_end = position > 0 and position % self.block == 0
            if not is_end or position > known or self.pool.has_key(slot):
                continue
            key = keys[position // self.block - 1]
            part.held[i] = position, self.pool.publish(slot, key)
            self._add(part, Snapshot(position, key, is_passing=not part.is_prompt))

    def _add(self, part: Part, new: Snapshot) -> None:
        """Note a snapshot; forget the passing one before it, and one of those that lie closest together."""
        kept = [each for each in part.snapshots if each.position < new.position]
        if new.is_passing and kept and kept[-1].is_passing:
            self.pool.forget(kept.pop().key)
        kept.append(new)
        if len(kept) > self.most_snapshots:
            self.pool.forget(kept.pop(_densest(kept)).key)
        part.snapshots = kept

    def fork(self, part: Part) -> Part:
        """Shares the slots; the new part finds those snapshots that any sequence finds."""
        for _, slot in part.held:
            self.pool.share(slot)
        return Part(part.held.copy())

    def reach(self, part: Part, keys: Sequence[bytes], position: int) -> int:
        """The highest position <= position that is held or has a snapshot, or 0."""
        return max((at for at in self._reachable(part, keys) if at <= position), default=0)

    def snapshots(self, part: Part, keys: Sequence[bytes]) -> dict[int, int]:
        """The slots of all snapshots that a sequence finds, by their positions."""
        found = {(i + 1) * self.block: self.pool.find(key) for i, key in enumerate(keys)}
        found |= {each.position: self.pool.find(each.key) for each in part.snapshots}
        return {at: slot for at, slot in found.items() if slot is not None}

    def _reachable(self, part: Part, keys: Sequence[bytes]) -> dict[int, int]:
        return self.snapshots(part, keys) | dict(part.held)

    def rewind(self, part: Part, keys: Sequence[bytes], position: int) -> None:
        """Go back to a position that `reach` gave. Raises ValueError for another one."""
        slot = self._reachable(part, keys).get(position)
        if position and slot is None:
            raise ValueError(f"cannot go back to position {position}: there is no snapshot")
        before = part.held
        part.held = [] if slot is None or not position else [(position, slot)]
        for _, kept in part.held:
            self.pool.share(kept)
        self._release(before)
        self._forget(part, position)
        part.is_prompt = False

    def _forget(self, part: Part, position: int) -> None:
        """Give up the snapshots behind a position; those at ends of blocks stay, for others to find."""
        for snapshot in part.snapshots:
            if snapshot.position > position and snapshot.key.startswith(PRIVATE):
                self.pool.forget(snapshot.key)
        part.snapshots = [each for each in part.snapshots if each.position <= position]

    def free(self, part: Part) -> None:
        """Releases all slots, and empties the part."""
        self._release(part.held)
        if part.target >= 0:
            self.pool.release(part.target)
        self._forget(part, -1)
        part.held, part.target = [], -1

    def _release(self, held: Sequence[tuple[int, int]]) -> None:
        for _, slot in held:
            self.pool.release(slot)


def _private() -> bytes:
    """A new key that is no hash."""
    return PRIVATE + b"%d" % next(_numbers)


def _densest(snapshots: Sequence[Snapshot]) -> int:
    """Index of the snapshot, not the last one, without which the least is lost.

    That is where the gap it would leave is smallest beside its distance from the last one.
    """
    now, positions = snapshots[-1].position, [0, *(each.position for each in snapshots)]
    gaps = [
        (positions[i + 2] - positions[i]) / (now - positions[i]) for i in range(len(snapshots) - 1)
    ]
    return gaps.index(min(gaps))
