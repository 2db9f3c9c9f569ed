"""The keys and values of one layer, in the arrays of a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .kinds import KV

Allocate = Callable[[tuple[int, ...], int], Any]  # shape and bits of a number -> zeros
FIRST = 8  # blocks of the first allocation


class Storage:
    """Blocks of keys and values; the arrays are as the backend in use made them (`ops.allocate`).

    keys: (blocks, heads, size, key_dim), values: (blocks, heads, size, value_dim)
    key_scales, value_scales: (blocks, heads, size) float32, which multiply 8-bit numbers; else None
    mark: of a backend that writes the arrays in place and lazily: an array that the last operation on them made. They
        hold what was appended once it is evaluated. None: they always do.
    """

    def __init__(self, kv: KV, size: int, allocate: Allocate) -> None:
        self.kv, self.size = kv, size
        self._allocate = allocate
        self.blocks = 0
        self.keys: Any = None
        self.values: Any = None
        self.key_scales: Any = None
        self.value_scales: Any = None
        self.mark: Any = None

    @property
    def named(self) -> dict[str, Any]:
        """All arrays by their names, with all that was appended; waits for it."""
        self.settle()
        return self._named

    @property
    def _named(self) -> dict[str, Any]:
        names = ("keys", "values", "key_scales", "value_scales")
        found = {name: getattr(self, name) for name in names}
        return {name: x for name, x in found.items() if x is not None}

    @property
    def arrays(self) -> list[Any]:
        """All arrays, with all that was appended; waits for it."""
        return list(self.named.values())

    def settle(self) -> None:
        """Wait until the arrays hold what was appended: MLX does not order what it reads after writes in place."""
        if self.mark is not None:
            mx.eval(self.mark)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(x.nbytes for x in self._named.values())

    def grow(self, blocks: int) -> None:
        """Have room for at least so many blocks; half as many again as before, so that growing is rare."""
        if blocks <= self.blocks:
            return
        self.settle()
        blocks = max(blocks, FIRST, self.blocks * 3 // 2)
        outer = (blocks, self.kv.heads, self.size)
        self.keys = self._grown(self.keys, (*outer, self.kv.key_dim), self.kv.bits)
        self.values = self._grown(self.values, (*outer, self.kv.value_dim), self.kv.bits)
        if self.kv.bits == 8:
            self.key_scales = self._grown(self.key_scales, outer, 32)
            self.value_scales = self._grown(self.value_scales, outer, 32)
        self.blocks = blocks

    def _grown(self, held: Any, shape: tuple[int, ...], bits: int) -> Any:
        new = self._allocate(shape, bits)
        if held is not None:
            new[: held.shape[0]] = held
        return new

    def copy(self, source: int, target: int) -> None:
        """Copy a block."""
        for x in self.arrays:
            x[target] = x[source]
