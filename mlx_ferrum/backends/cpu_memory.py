"""Memory for the results of operations over many tokens.

Fresh memory of this size comes from the system page by page, zeroed, and goes back as soon as it is free: a
tenth of the time of a prompt. So large arrays are kept and handed out again once nobody else refers to them.
"""

from __future__ import annotations

import math
import sys
import threading

import numpy as np

LARGE = 1 << 16  # numbers from which on an array is kept
NOBODY = (
    3  # references to a kept array that is not in use: the list's, the loop's and getrefcount's
)


class _Kept(threading.local):
    """Arrays by the power of two that is their size; each thread has its own."""

    def __init__(self) -> None:
        self.arrays: dict[int, list[np.ndarray]] = {}


_kept = _Kept()


def empty(*shape: int) -> np.ndarray:
    """A float32 array of any numbers, contiguous and nobody else's."""
    size = math.prod(shape)
    if size < LARGE:
        return np.empty(shape, np.float32)
    room = 1 << (size - 1).bit_length()
    arrays = _kept.arrays.setdefault(room, [])
    for array in arrays:
        if sys.getrefcount(array) <= NOBODY:
            return array[:size].reshape(
                shape
            )  # a view: it refers to the array for as long as it lives
    arrays.append(np.empty(room, np.float32))
    return arrays[-1][:size].reshape(shape)
