"""Memory for the results of operations over many tokens.

The system hands out fresh memory of this size page by page, zeroed, and takes it back as soon as it is free, which
costs a tenth of the time of a prompt. So the memory of large arrays is kept and handed out again.

Each array that is handed out has an owner, which every view of it keeps alive. The owner returns the memory when it is
destroyed, that is, when the last view is gone, in whatever thread that happens. Nothing depends on how many
references an interpreter counts: CPython 3.14 borrows references that earlier versions counted.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

LARGE = 1 << 16  # float32 values from which on memory is kept
# Bytes kept of each size, a power of two: two results of 512 tokens in layers 32,000 wide. What is returned beyond
# that goes back to the system, so that one long prompt does not hold its memory for the life of the process.
KEPT = 128 << 20

_free: dict[int, list[Any]] = {}  # bytes -> buffers of that size; pop and append are atomic


class _Owner(np.ndarray):
    """Bytes of a buffer, which is free again when this array is destroyed."""

    def __del__(self) -> None:
        buffer: Any = self.base
        if isinstance(buffer, ctypes.Array):  # else a view of an owner
            free = _free.setdefault(self.nbytes, [])
            if len(free) * self.nbytes < KEPT:
                free.append(buffer)


def empty(*shape: int) -> np.ndarray:
    """An uninitialized, contiguous float32 array that nothing else references."""
    size = math.prod(shape)
    if size < LARGE:
        return np.empty(shape, np.float32)
    nbytes = 4 << (size - 1).bit_length()
    try:
        buffer = _free[nbytes].pop()
    except (KeyError, IndexError):
        buffer = (ctypes.c_char * nbytes).from_buffer(np.empty(nbytes, np.uint8).data)
    return np.ndarray(shape, np.float32, _Owner(nbytes, np.uint8, buffer))
