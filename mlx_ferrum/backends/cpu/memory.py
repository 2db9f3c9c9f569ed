"""Memory for the results of operations.

The system hands out fresh memory of large size page by page, zeroed, and takes it back as soon as it is free, which
costs a tenth of the time of a prompt. So the memory of large arrays is kept and handed out again.

While a step is recorded, all results lie in an arena instead: the same operations in the same order get the same
addresses again, so that a recorded call finds its arguments where they were.

Each array that is handed out has an owner, which every view of it keeps alive. The owner returns the memory when it is
destroyed, that is, when the last view is gone, in whatever thread that happens. Nothing depends on how many
references an interpreter counts: CPython 3.14 borrows references that earlier versions counted.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ...kernels.cpu.native import address

LARGE = 1 << 16  # float32 values, of four bytes, from which on memory is kept
# Bytes kept of each size, a power of two: two results of 512 tokens in layers 32,000 wide. What is returned beyond
# that goes back to the system, so that one long prompt does not hold its memory for the life of the process.
KEPT = 128 << 20
ALIGNMENT = 64  # bytes, of arrays in an arena
CHUNK = 1 << 20  # bytes, the least that an arena asks for at a time

_free: dict[int, list[Any]] = {}  # bytes -> buffers of that size; pop and append are atomic


class _Owner(np.ndarray):
    """Bytes of a buffer, which is free again when this array is destroyed."""

    def __del__(self) -> None:
        buffer: Any = self.base
        if isinstance(buffer, ctypes.Array):  # else a view of an owner
            free = _free.setdefault(self.nbytes, [])
            if len(free) * self.nbytes < KEPT:
                free.append(buffer)


class _Lease(np.ndarray):
    """Bytes of an arena, which may hand them out again when this array is destroyed."""

    returned: Callable[[], None] | None = None

    def __del__(self) -> None:
        if self.returned is not None:  # else a view of a lease
            self.returned()


class Arena:
    """Memory of one recorded step. From each `start` on the same requests in the same order get the same addresses.

    known: arrays from outside that operations may read
    is_closed: whether they read nothing else but each other's results, as far as `trace` saw
    """

    def __init__(self, *known: np.ndarray) -> None:
        self._chunks: list[ctypes.Array[Any]] = []
        self._known = {address(x) for x in known}
        self.start()

    def start(self) -> None:
        """Hand out everything anew. Arrays from before are overwritten by later ones."""
        # bytes -> (chunk, offset); what comes back from before goes to a list that nobody reads any more
        self._free: dict[int, list[tuple[int, int]]] = {}
        self._chunk = self._offset = 0
        self.is_closed = True

    def empty(self, nbytes: int) -> np.ndarray:
        """So many uninitialized bytes, which start at a multiple of ALIGNMENT."""
        size = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        free = self._free.setdefault(size, [])
        place = free.pop() if free else self._next(size)
        chunk: Any = self._chunks[place[0]]
        lease = _Lease(size, np.uint8, chunk, place[1])
        lease.returned = partial(free.append, place)
        return lease

    def _next(self, size: int) -> tuple[int, int]:
        """Chunk and offset of bytes that were not handed out before."""
        while self._chunk < len(self._chunks):
            place = self._chunk, self._offset
            if self._offset + size <= len(self._chunks[self._chunk]):
                self._offset += size
                return place
            self._chunk, self._offset = self._chunk + 1, 0
        self._chunks.append(_aligned(max(size, CHUNK)))
        self._offset = size
        return self._chunk, 0

    def owns(self, x: Any) -> bool:
        """Whether x is an array in the arena, or a known one."""
        if not isinstance(x, np.ndarray):
            return False
        start = x.ctypes.data  # which views have too that are not contiguous
        return start in self._known or any(
            0 <= start - address(chunk) < len(chunk) for chunk in self._chunks
        )


def _buffer(memory: np.ndarray, start: int, nbytes: int) -> ctypes.Array[Any]:
    """Part of an array, as memory that NumPy did not make: an array over it is then kept alive by its views."""
    return (ctypes.c_char * nbytes).from_buffer(memory.data, start)


def _aligned(nbytes: int) -> ctypes.Array[Any]:
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    return _buffer(memory, -address(memory) % ALIGNMENT, nbytes)


class _Thread(threading.local):
    """The arena in which results of this thread go, while a step is recorded."""

    arena: Arena | None = None


_thread = _Thread()


@contextmanager
def within(arena: Arena) -> Iterator[None]:
    """Let results of this thread lie in `arena` meanwhile, handed out anew."""
    arena.start()
    try:
        _thread.arena = arena
        yield
    finally:
        _thread.arena = None


def empty(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """An uninitialized, contiguous array that nothing else references."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if _thread.arena is not None:
        return np.ndarray(shape, dtype, _thread.arena.empty(size))
    if size < 4 * LARGE:
        return np.empty(shape, dtype)
    nbytes = 1 << (size - 1).bit_length()
    try:
        buffer = _free[nbytes].pop()
    except (KeyError, IndexError):
        buffer = _buffer(np.empty(nbytes, np.uint8), 0, nbytes)
    return np.ndarray(shape, dtype, _Owner(nbytes, np.uint8, buffer))


def trace(x: Any) -> Any:
    """x, which an operation reads or a step returns. An arena notes if it is no result of a recorded operation."""
    arena = _thread.arena
    if arena is not None and not arena.owns(x):
        arena.is_closed = False
    return x
