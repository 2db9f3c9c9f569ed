"""Bytes of a mapped file straight into a GPU's memory, with no copy of them on the host."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from mlx_ferrum.launch import Header, Kernel, Launch

from . import driver
from .runner import run

PIECE = 64 << 20  # bytes that a copy takes at most; they are then no longer resident
_PRELUDE = Header(("prelude.metal",))
ADDRESS = Kernel("address", "address[0] = (uint64_t)x;", ("x",), ("address",), _PRELUDE)
ALLOCATE = Kernel("allocate", "address[0] = (uint64_t)y;", (), ("y", "address"), _PRELUDE)
_ONE = (1, 1, 1)


def upload(
    buffer: np.ndarray, runs: Iterable[tuple[int, int]], shape: Sequence[int], dtype: mx.Dtype
) -> mx.array:
    """An array of `shape` in the GPU's own memory with the bytes [start, stop) of each of `runs`, in their order.

    buffer: (bytes,) uint8; what was copied of a mapped file is read from the file again when the host next uses it
    Raises DriverError, RuntimeError if the memory is not to be had.
    """
    # not the runner in use, which may be another one
    y, address = run(ALLOCATE, Launch([], {}, _ONE, _ONE, [shape, (1,)], [dtype, mx.uint64], None))
    mx.eval(y, address)
    target = int(np.asarray(address)[0])
    for start, stop in runs:
        for first in range(start, stop, PIECE):
            last = min(first + PIECE, stop)
            driver.copy_to_device(target, buffer.ctypes.data + first, last - first)
            _release(buffer, first, last)
            target += last - first
    return y


def address(x: mx.array) -> int:
    """Where an evaluated array lies in the GPU's memory."""
    (found,) = run(ADDRESS, Launch([x], {}, _ONE, _ONE, [(1,)], [mx.uint64], None))
    return int(np.asarray(found)[0])


def free_memory() -> int:
    """Bytes of the GPU's memory that are free, after MLX has given back what it keeps for later arrays."""
    mx.clear_cache()
    driver.call("cuCtxSynchronize")  # memory is given back in the order of the work before it
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def _release(buffer: np.ndarray, start: int, stop: int) -> None:
    """Let the system take the whole pages within back, where they are a file's: read-only, they hold nothing else."""
    mapping = getattr(buffer.base, "obj", None)
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not isinstance(mapping, mmap.mmap) or buffer.flags.writeable:
        return
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        mapping.madvise(advice, first, last - first)
