"""How fast stretches of a model's file can be read from disk. Nothing is written."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import gguf, packed
from ..streamed import Files, bypasses_cache

DEPTHS = (1, 4, 8)  # reads at a time
SECONDS = 0.35  # for each depth
LARGEST = 1 << 23  # bytes of a read
SECTOR = 4096
HUGE = 1 << 21  # bytes of a large page


class Stretch(NamedTuple):
    """Bytes of a file of the model. part: its number; offset, nbytes: where in it"""

    part: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Disk:
    """What was measured.

    nbytes: of a read, on average
    speeds: bytes a second, by reads at a time
    bypasses_cache: reads went past the page cache; otherwise they may have come from memory
    """

    nbytes: int
    speeds: Mapping[int, float]
    bypasses_cache: bool

    @property
    def best(self) -> float:
        """The highest speed."""
        return max(self.speeds.values())


def stretches(file: gguf.GGUF, stacks: Sequence[gguf.TensorInfo]) -> list[Stretch]:
    """What is read at once: the matrices of the experts in stacks; without any, pieces of all tensors."""
    found = []
    for info in stacks:
        nbytes = info.nbytes // info.shape[0]
        step = info.step if isinstance(info, packed.Stack) else nbytes
        found += [Stretch(info.part, info.offset + i * step, nbytes) for i in range(info.shape[0])]
    if found:
        return found
    for info in file.tensors.values():
        starts = range(0, info.nbytes, LARGEST)
        found += [
            Stretch(info.part, info.offset + at, min(LARGEST, info.nbytes - at)) for at in starts
        ]
    return found


def measure(file: gguf.GGUF, places: Sequence[Stretch], seconds: float = SECONDS) -> Disk:
    """Read at random places, as many at a time as DEPTHS say. Raises OSError where the file cannot be read."""
    files = Files(file)
    speeds, nbytes, reads = {}, 0, 0
    for depth in DEPTHS:
        with ThreadPoolExecutor(depth) as pool:
            start = time.perf_counter()
            work = [
                pool.submit(_read, files, places, seed, start + seconds) for seed in range(depth)
            ]
            done = [each.result() for each in work]
            taken = time.perf_counter() - start
        total = sum(read for read, _ in done)
        speeds[depth] = total / taken
        nbytes, reads = nbytes + total, reads + sum(count for _, count in done)
    bypasses = all(bypasses_cache(each.path) for each in file.files)
    return Disk(nbytes // reads, speeds, bypasses)


def _read(files: Files, places: Sequence[Stretch], seed: int, end: float) -> tuple[int, int]:
    """Read until it is `end`, once at least; bytes and reads."""
    draw, total, count = random.Random(seed), 0, 0
    largest = max(place.nbytes for place in places)
    memory = _memory(min(largest, LARGEST) + 2 * SECTOR)
    while not count or time.perf_counter() < end:
        place = draw.choice(places)
        start = place.offset // SECTOR * SECTOR  # reads past the cache are of whole sectors
        size = -(-(place.offset + min(place.nbytes, LARGEST) - start) // SECTOR) * SECTOR
        total += os.preadv(files.numbers[place.part], [memory[:size]], start)
        count += 1
    return total, count


def _memory(nbytes: int) -> memoryview:
    """Large pages where the system has them, as the slots of experts are: into small ones reads can be half as fast."""
    whole = mmap.mmap(-1, nbytes + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            whole.madvise(mmap.MADV_HUGEPAGE)
    start = -np.frombuffer(whole, np.uint8).ctypes.data % HUGE
    return memoryview(whole)[start : start + nbytes]
