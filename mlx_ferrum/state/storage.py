"""What one layer keeps, in the arrays of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import mlx.core as mx

from .kinds import KV, Recurrent
from .pool import Pool

Shape = tuple[int, ...]
Allocate = Callable[[Shape, int], Any]  # shape and bits of a number -> zeros
FIRST = 8  # blocks of the first allocation
FIRST_SLOTS = 4  # the same of slots, which are larger


class Storage:
    """Arrays whose first axis is the blocks, or slots; they are as the backend in use made them (`ops.allocate`).

    mark: of a backend that writes the arrays in place and lazily: an array that the last operation on them made. They
        hold what was written once it is evaluated. None: they always do.
    """

    def __init__(self, shapes: dict[str, tuple[Shape, int]], allocate: Allocate) -> None:
        """shapes: of each array by its name, without the first axis, and the bits of a number in it"""
        self._shapes, self._allocate = shapes, allocate
        self.blocks = 0
        self.mark: Any = None

    @property
    def named(self) -> dict[str, Any]:
        """All arrays by their names, with all that was written; waits for it."""
        self.settle()
        return self._named

    @property
    def _named(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._shapes if self.blocks}

    @property
    def arrays(self) -> list[Any]:
        """All arrays, with all that was written; waits for it."""
        return list(self.named.values())

    def settle(self) -> None:
        """Wait until the arrays hold what was written: MLX does not order what it reads after writes in place."""
        if self.mark is not None:
            mx.eval(self.mark)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(x.nbytes for x in self._named.values())

    def grow(self, blocks: int, first: int = FIRST) -> None:
        """Have room for at least so many blocks; half as many again as before, so that growing is rare."""
        if blocks <= self.blocks:
            return
        self.settle()
        blocks = max(blocks, first, self.blocks * 3 // 2)
        for name, (shape, bits) in self._shapes.items():
            new = self._allocate((blocks, *shape), bits)
            if (held := getattr(self, name, None)) is not None:
                new[: held.shape[0]] = held  # more than `blocks` after an interruption
            setattr(self, name, new)
        self.blocks = blocks

    def copy(self, source: int, target: int) -> None:
        """Copy a block."""
        for x in self.arrays:
            x[target] = x[source]


S = TypeVar("S", bound=Storage)


class Stored(Generic[S]):
    """What a State adds that has arrays: a storage for each of its layers, as large as its pool needs.

    room: blocks, or slots, of the arrays
    grown: how often they were made anew
    """

    pool: Pool
    storages: Mapping[int, S]
    room = grown = 0

    def grow(self) -> None:
        """Have room for every block, or slot, that the pool has given out."""
        if self.pool.capacity > self.room:
            self.grown += 1
            for storage in self.storages.values():
                storage.grow(self.pool.capacity)
            # last: an interruption before it lets all of them grow again
            self.room = min(storage.blocks for storage in self.storages.values())


class KVStorage(Storage):
    """Keys and values of one layer, in blocks.

    keys: (blocks, heads, size, key_dim), values: (blocks, heads, size, value_dim)
    key_scales, value_scales: (blocks, heads, size) float32, which multiply 8-bit numbers; else None
    """

    keys: Any = None
    values: Any = None
    key_scales: Any = None
    value_scales: Any = None

    def __init__(self, kv: KV, size: int, allocate: Allocate) -> None:
        rows = (kv.heads, size)
        shapes: dict[str, tuple[Shape, int]] = {
            "keys": ((*rows, kv.key_dim), kv.bits),
            "values": ((*rows, kv.value_dim), kv.bits),
        }
        if kv.bits == 8:
            shapes |= {"key_scales": (rows, 32), "value_scales": (rows, 32)}
        super().__init__(shapes, allocate)
        self.kv, self.size = kv, size


class RecurrentStorage(Storage):
    """The states of one recurrent layer, in slots, all float32.

    columns: (slots, columns, channels), raw inputs of the convolution in the order of time
    matrices: (slots, heads, size, size), keys along the first of the two last axes, values along the last
    """

    columns: Any = None
    matrices: Any = None

    def __init__(self, kind: Recurrent, allocate: Allocate) -> None:
        shapes: dict[str, tuple[Shape, int]] = {
            "columns": ((kind.columns, kind.channels), 32),
            "matrices": ((kind.heads, kind.size, kind.size), 32),
        }
        super().__init__(shapes, allocate)
        self.kind = kind

    def grow(self, blocks: int, first: int = FIRST_SLOTS) -> None:
        super().grow(blocks, first)
