"""Block tables of the sequences of one window group, over a pool. Knows no arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..interrupts import uninterrupted
from .pool import Pool

BLOCK = 32  # positions in a block


@dataclass(slots=True)
class Part:
    """The block table of one sequence.

    blocks: id of the block that holds positions i * block ... (i + 1) * block - 1; -1 behind the window
    first: index of the first block that is held
    version: grows with every change of `blocks`
    published: blocks below this index are published
    ready: `reserve` has nothing to do for positions below it
    row: what a state made of `blocks`, and their version then
    """

    blocks: list[int]
    first: int = 0
    version: int = 0
    published: int = 0
    ready: int = 0
    row: tuple[int, Any] | None = None


class Paged:
    """A State: keys and values in blocks, for the layers that have the same window.

    copy: called as copy(source, target) when a shared or published block is about to be written
    window: positions that a row sees, itself included; None: all before it
    slack: positions behind the window that are held, so that `rewind` can go back by as many
    block: positions in a block
    """

    def __init__(
        self,
        pool: Pool,
        copy: Callable[[int, int], None],
        *,
        window: int | None = None,
        slack: int = 0,
        block: int = BLOCK,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window is {window}, expected at least 1")
        if slack < 0 or block < 1:
            raise ValueError(f"slack {slack} and block {block}, expected at least 0 and 1")
        self.pool = pool
        self.copy = copy
        self.window = window
        self.slack = slack
        self.block, self.unit = block, f"blocks of {block} positions"

    def _seen(self, position: int, slack: int = 0) -> int:
        """Index of the first block that a row at `position` sees, or at one `slack` positions before."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1 - slack) // self.block

    def _end(self, position: int) -> int:
        """Number of blocks that positions 0 ... position - 1 reach into."""
        return -(-position // self.block)

    def longest(self, keys: Sequence[bytes], most: int) -> int:
        """The most positions <= most whose visible blocks the pool has: a multiple of the block, or 0."""
        best = run = 0
        for end in range(1, min(len(keys), most // self.block) + 1):
            run = run + 1 if self.pool.find(keys[end - 1]) is not None else 0
            if run >= end - self._seen(end * self.block):
                best = end
        return best * self.block

    def begin(self, keys: Sequence[bytes], position: int) -> Part:
        """Shares the blocks that a row at `position` sees. Raises ValueError if one is not in the pool."""
        if position % self.block:
            raise ValueError(f"start at {position}, expected a multiple of {self.block}")
        end, first = position // self.block, self._seen(position)
        part = Part([-1] * end, first=end, published=end)
        self._take_up(part, keys, first)
        return part

    def resume(self, position: int, first: int) -> Part:
        """The part of a sequence that has `position` positions, with blocks of its own from index `first` on.

        Their contents are up to the caller. Raises ValueError if a row at `position` sees a block before them.
        """
        if not 0 <= first <= self._seen(position):
            raise ValueError(
                f"blocks from {first} on, expected from {self._seen(position)} on, or earlier"
            )
        end = self._end(position)
        self.pool.check(end - first)
        taken = [self.pool.take() for _ in range(first, end)]
        return Part([-1] * first + taken, first=first, published=first)

    def needed(self, part: Part, position: int, count: int, known: int = 0) -> int:
        """The free blocks that `reserve` needs, less those that it frees first."""
        if not count or position + count <= part.ready:
            return 0
        start, end = position // self.block, self._end(position + count)
        mine = sum(map(self.pool.is_mine, part.blocks[start:end]))
        behind = part.blocks[part.first : self._seen(position, self.slack)]
        freed = sum(self.pool.references[block] == 1 for block in behind)
        return max(0, end - start - mine - freed)

    def most(self, positions: int, count: int) -> int:
        """The most blocks that a sequence of `positions` holds if at most `count` are reserved at a time."""
        blocks = self._end(positions)
        if self.window is None:
            return blocks
        return min(blocks, self._end(self.window + self.slack + count - 2) + 1)

    def reserve(self, part: Part, position: int, count: int, known: int = 0) -> None:
        """Frees blocks behind the window, copies those that are not the part's own, and takes new ones.

        Raises OutOfBlocksError if the pool has fewer than `needed`; nothing has changed then.
        """
        if not count or position + count <= part.ready:
            return
        self.pool.check(self.needed(part, position, count))
        with uninterrupted():
            self._reserve(part, position, self._end(position + count))

    def _reserve(self, part: Part, position: int, end: int) -> None:
        self._leave(part, self._seen(position, self.slack))
        for index in range(position // self.block, min(end, len(part.blocks))):
            if not self.pool.is_mine(part.blocks[index]):
                self._replace(part, index, position)
        if len(part.blocks) < end:
            part.blocks += [self.pool.take() for _ in range(end - len(part.blocks))]
            part.version += 1
        part.ready = end * self.block
        if self.window is not None:  # one more block is left behind from here on
            due = (part.first + 1) * self.block + self.window - 1 + self.slack
            part.ready = min(part.ready, due)

    def _leave(self, part: Part, first: int) -> None:
        """Release the blocks before index `first`."""
        for index in range(part.first, first):
            self.pool.release(part.blocks[index])
            part.blocks[index] = -1
            part.version += 1
        part.first = max(part.first, first)

    def _replace(self, part: Part, index: int, position: int) -> None:
        """Give the part a block of its own at `index`, with the contents before `position`."""
        source, target = part.blocks[index], self.pool.take()
        if index * self.block < position:
            self.copy(source, target)
        part.blocks[index] = target
        part.version += 1
        self.pool.release(source)

    def whole(self, position: int, count: int) -> int:
        """All of them: a pass may end anywhere."""
        return count

    def advance(self, part: Part, position: int, count: int) -> None:
        """Nothing to do: rows lie where their positions say."""

    def publish(self, part: Part, keys: Sequence[bytes], known: int) -> None:
        """Gives the full blocks below position `known` their hashes; equal blocks become one."""
        for index in range(part.published, known // self.block):
            block = part.blocks[index]
            if block >= 0:
                part.blocks[index] = self.pool.publish(block, keys[index])
                part.version += part.blocks[index] != block
        part.published = max(part.published, known // self.block)

    def fork(self, part: Part) -> Part:
        """Shares all blocks, also a partly filled one: whoever writes next copies it."""
        for block in part.blocks[part.first :]:
            self.pool.share(block)
        part.ready = 0
        return Part(part.blocks.copy(), part.first, part.version, part.published)

    def reach(self, part: Part, keys: Sequence[bytes], position: int) -> int:
        """The highest position <= position whose visible blocks are held or in the pool."""
        while (missing := self._missing(part, keys, position)) is not None:
            position = missing * self.block
        return position

    def _missing(self, part: Part, keys: Sequence[bytes], position: int) -> int | None:
        """Index of the first block that a row at `position` sees and that is neither held nor in the pool."""
        for index in range(self._seen(position), min(part.first, self._end(position))):
            if index >= len(keys) or self.pool.find(keys[index]) is None:
                return index
        return None

    def rewind(self, part: Part, keys: Sequence[bytes], position: int) -> None:
        """Releases the blocks from `position` on, and takes up blocks that had been left behind.

        Raises ValueError if a block that a row at `position` sees is gone.
        """
        missing = self._missing(part, keys, position)
        if missing is not None:
            raise ValueError(f"cannot go back to position {position}: block {missing} is gone")
        end = self._end(position)
        if end < len(part.blocks):
            self._release(part.blocks[max(part.first, end) :])
            del part.blocks[end:]
            part.version += 1
        part.first = min(part.first, end)
        self._take_up(part, keys, self._seen(position))
        part.published = min(part.published, position // self.block)
        part.ready = 0

    def _take_up(self, part: Part, keys: Sequence[bytes], first: int) -> None:
        """Share the pool's blocks from index `first` to the first that is held."""
        for index in range(first, part.first):
            block = self.pool.find(keys[index])
            if block is None:
                raise ValueError(f"block {index} of the sequence is not in the pool")
            self.pool.share(block)
            part.blocks[index] = block
            part.version += 1
        part.first = min(part.first, first)

    def free(self, part: Part) -> None:
        """Releases all blocks, and empties the part."""
        self._release(part.blocks[part.first :])
        part.blocks.clear()
        part.first = part.published = part.ready = 0
        part.version += 1

    def _release(self, blocks: Iterable[int]) -> None:
        """Release blocks, the last first: a block is evicted before those that it follows."""
        for block in reversed(list(blocks)):
            self.pool.release(block)
