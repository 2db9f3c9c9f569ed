"""Block ids of one window group: reference counts, hashes for prefix reuse, eviction. Knows no arrays.

A block is in one of three roles:
- unused: its id was never given out, or it was released without a hash;
- held: it has references, with or without a hash;
- cached: it has a hash and no references, so a new sequence can find it until it is evicted.
"""

from __future__ import annotations

import sys


class OutOfBlocksError(RuntimeError):
    """A pool has too few free blocks. `wanted`, `free` and `size` are numbers of blocks."""

    def __init__(self, wanted: int, free: int, size: int) -> None:
        super().__init__(f"out of blocks: {wanted} wanted, {free} of {size} free")
        self.wanted = wanted
        self.free = free
        self.size = size


class Pool:
    """Ids of blocks, 0 ... size - 1, with reference counts.

    size: number of blocks; None: ids grow as blocks are asked for
    keep: only without a size; cached blocks are evicted before ids grow past this number
    capacity: ids given out so far are below it
    references: the references of each block below `capacity`
    """

    def __init__(self, size: int | None = None, *, keep: int = 0) -> None:
        if size is not None and size < 1:
            raise ValueError(f"a pool of {size} blocks, expected at least 1")
        if keep < 0 or (keep and size is not None):
            raise ValueError(f"keep is {keep} with size {size}, expected 0, or more without a size")
        self.size = size
        self.capacity = 0
        self.references: list[int] = []
        self._growth = keep if size is None else size  # ids grow to it before anything is evicted
        self._released: list[int] = []  # without a hash; the last is taken first
        self._cached: dict[int, None] = {}  # least recently used first
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}

    def __repr__(self) -> str:
        held = self.capacity - len(self._released) - len(self._cached)
        size = "" if self.size is None else f" of {self.size}"
        return f"Pool({held}{size} blocks held, {len(self._cached)} cached)"

    @property
    def free(self) -> int:
        """Blocks that can be taken now: unused and cached ones. sys.maxsize if the pool has no size."""
        if self.size is None:
            return sys.maxsize
        return self.size - self.capacity + len(self._released) + len(self._cached)

    def check(self, wanted: int) -> None:
        """Raise OutOfBlocksError unless `wanted` blocks can be taken now."""
        if self.size is not None and wanted > self.free:
            raise OutOfBlocksError(wanted, self.free, self.size)

    def take(self) -> int:
        """A block with one reference and no hash.

        Released blocks come first, then new ids, then the least recently used cached block, which loses its hash.
        Raises OutOfBlocksError.
        """
        self.check(1)
        if self._released:
            block = self._released.pop()
        elif self._cached and self.capacity >= self._growth:
            block = self._evict()
        else:
            block = self.capacity
            self.capacity += 1
            self.references.append(0)
        self.references[block] = 1
        return block

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        del self._blocks[self._keys.pop(block)]
        return block

    def share(self, block: int) -> None:
        """Add a reference to a held or cached block. Raises ValueError for an unused one."""
        if block in self._cached:
            del self._cached[block]
        else:
            self._check_held(block)
        self.references[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference; without any, a block with a hash is cached. Raises ValueError unless it is held."""
        self._check_held(block)
        self.references[block] -= 1
        if self.references[block]:
            return
        if block in self._keys:
            self._cached[block] = None
        else:
            self._released.append(block)

    def publish(self, block: int, key: bytes) -> int:
        """Give a full block its hash, and return the block to hold instead.

        That is another block if one has this hash already: the reference moves to it. Otherwise it is `block`.
        Raises ValueError if the block is not held or has another hash.
        """
        self._check_held(block)
        if self._keys.get(block, key) != key:
            found, expected = self._keys[block].hex(), key.hex()
            raise ValueError(f"block {block} has hash {found}, expected {expected} or none")
        held = self._blocks.setdefault(key, block)
        if held == block:
            self._keys[block] = key
            return block
        self.share(held)
        self.release(block)
        return held

    def forget(self, key: bytes) -> None:
        """Take the hash from a block that has it: nobody finds it any more, and it is free once it is released."""
        block = self._blocks.pop(key, None)
        if block is None:
            return
        del self._keys[block]
        if block in self._cached:
            del self._cached[block]
            self._released.append(block)

    def find(self, key: bytes) -> int | None:
        """The block with this hash, held or cached."""
        return self._blocks.get(key)

    def has_key(self, block: int) -> bool:
        """Whether the block has a hash."""
        return block in self._keys

    def is_mine(self, block: int) -> bool:
        """Whether the holder may write into the block: it has one reference and no hash."""
        self._check_held(block)
        return self.references[block] == 1 and block not in self._keys

    def _check_held(self, block: int) -> None:
        if not 0 <= block < self.capacity or not self.references[block]:
            raise ValueError(f"block {block} has no references, expected a held block")
