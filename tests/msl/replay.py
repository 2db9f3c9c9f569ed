"""Recorded dispatches made again, in other orders that a schedule allows.

Launches run on the host, copies are made, and operations of MLX give what they gave when they were recorded. The
host gives the same for the same inputs, so what a launch did to given bytes is done once and remembered.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from .host import Host
from .recording import Bound, Copied, Extent, Launched, Recording, Work, merged
from .schedule import Schedule


@dataclass(frozen=True)
class Difference:
    """A dispatch that leaves other bytes in its outputs, or in the inputs that it writes, when an order is another.

    number: its place among the dispatches; seed: of the order
    """

    name: str
    number: int
    seed: int

    def __str__(self) -> str:
        return f"{self.name} ({self.number}) has another result in order {self.seed}"


def orders(made: Schedule, count: int) -> Iterator[list[int]]:
    """`count` random orders of the dispatches, each after those that end before it begins."""
    direct = _direct(made.before)
    for seed in range(count):
        yield _order(direct, random.Random(seed))


def differences(recorded: Recording, made: Schedule, count: int = 200) -> list[Difference]:
    """What `count` random orders change, bit for bit: of each order the first dispatch that it makes differ.

    Raises AssertionError if the order of the recording does not give what was recorded.
    """
    replay = Replay(recorded)
    results, memory = replay.run(range(len(made.works)))
    _check(replay, results)
    out = []
    for seed, order in enumerate(orders(made, count)):
        _, left = replay.run(order)
        changed = [i for i in order if not _same(left, memory, made.works[i])]
        if changed:
            out.append(Difference(made.works[changed[0]].name, changed[0], seed))
    return out


class Memory:
    """The buffers of a recording, from the state before it; what nothing has written yet has all bits set."""

    def __init__(self, recorded: Recording) -> None:
        works = recorded.works
        used = [x for work in works for x in (*work.reads, *work.outputs)]
        self.wholes = [whole for whole, _ in merged([*used, *(x for x, _ in recorded.given)])]
        self.starts = [whole.start for whole in self.wholes]
        self.bytes = [np.full(w.nbytes, 0xFF, np.uint8) for w in self.wholes]
        for extent, seen in reversed(recorded.given):  # what was seen first holds
            self[extent][:] = seen

    def __getitem__(self, extent: Extent) -> np.ndarray:
        """The bytes there, to be read and written."""
        i = bisect.bisect_right(self.starts, extent.start) - 1
        first = extent.start - self.starts[i]
        return self.bytes[i][first : first + extent.nbytes]

    def copy(self) -> Memory:
        """The same bytes elsewhere."""
        other = Memory.__new__(Memory)
        other.wholes, other.starts = self.wholes, self.starts
        other.bytes = [x.copy() for x in self.bytes]
        return other


@dataclass
class Replay:
    """Makes the dispatches of a recording again, from the memory before it."""

    recorded: Recording
    host: Host = field(default_factory=Host)

    def __post_init__(self) -> None:
        self.works = self.recorded.works
        self.memory = Memory(self.recorded)
        self.variable = _variable(self.works)
        self.done: dict[tuple[int, bytes], list[np.ndarray]] = {}

    def run(self, order: Sequence[int]) -> tuple[dict[int, bytes], Memory]:
        """All dispatches, one after another in this order: a digest of what each left, and the memory at the end."""
        memory, results = self.memory.copy(), {}
        for number in order:
            work = self.works[number]
            self._act(number, work, memory)
            results[number] = _digest(memory, (*work.outputs, *work.writes))
        return results, memory

    def _act(self, number: int, work: Work, memory: Memory) -> None:
        if isinstance(work.action, Launched):
            self._launch(number, work.action, work, memory)
        elif isinstance(work.action, Copied):
            _copy(work.action, memory)
        else:
            for extent, result in work.action.results:
                memory[extent][:] = result

    def _launch(self, number: int, launched: Launched, work: Work, memory: Memory) -> None:
        key = number, _digest(memory, self.variable[number])
        if key not in self.done:
            arrays = [_array(x, memory) for x in launched.inputs]
            outputs = self.host(launched.kernel, replace(launched.call, arrays=arrays))
            written = [arrays[launched.kernel.inputs.index(n)] for n in launched.kernel.writes]
            self.done[key] = [_raw(x) for x in (*outputs, *written)]
        places = [x.extent for x in launched.outputs] + [*work.writes]
        for extent, result in zip(places, self.done[key], strict=True):
            memory[extent][:] = result


def _check(replay: Replay, found: dict[int, bytes]) -> None:
    """Compare what dispatches left, in the order of the recording, with what they left then."""
    for number, work in enumerate(replay.works):
        if isinstance(work.action, Launched):
            same = (
                found[number]
                == hashlib.blake2b(b"".join(x.data for x in work.action.results)).digest()
            )
            assert same, f"{work.name} ({number}) does not give what was recorded"


def _variable(works: Sequence[Work]) -> list[tuple[Extent, ...]]:
    """Of each dispatch the inputs that another one may change."""
    changed = [whole for whole, _ in merged(x for w in works for x in (*w.outputs, *w.writes))]
    return [tuple(x for x in w.reads if any(x.overlaps(y) for y in changed)) for w in works]


def _digest(memory: Memory, extents: Sequence[Extent]) -> bytes:
    found = hashlib.blake2b()
    for extent in extents:
        found.update(memory[extent].data)
    return found.digest()


def _same(one: Memory, other: Memory, work: Work) -> bool:
    extents = (*work.outputs, *work.writes)
    return all(np.array_equal(one[x], other[x]) for x in extents)


def _copy(copied: Copied, memory: Memory) -> None:
    kind = np.dtype(f"V{copied.itemsize}")
    first = copied.first - copied.source.start
    view = np.ndarray(copied.shape, kind, memory[copied.source], first, copied.strides)
    memory[copied.target][:] = np.ascontiguousarray(view).reshape(-1).view(np.uint8)


def _array(x: Bound, memory: Memory) -> mx.array:
    """An array of its own, of the bytes there."""
    if not x.extent.nbytes:
        return mx.zeros(x.shape, x.dtype)
    return mx.array(memory[x.extent]).view(x.dtype).reshape(x.shape)


def _raw(x: mx.array) -> np.ndarray:
    """A copy of the bytes of a contiguous array."""
    numbers = np.asarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)
    return numbers.reshape(-1).view(np.uint8).copy()


def _direct(before: Sequence[int]) -> list[list[int]]:
    """Of each dispatch those before it that no other one stands between."""
    out = []
    for mask in before:
        earlier = _bits(mask)
        between = 0
        for i in earlier:
            between |= before[i]
        out.append(_bits(mask & ~between))
    return out


def _bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


def _order(direct: Sequence[Sequence[int]], source: random.Random) -> list[int]:
    """A random order; what may come next is taken by a random rank, so that some wait for long."""
    missing = [len(earlier) for earlier in direct]
    after: list[list[int]] = [[] for _ in direct]
    for i, earlier in enumerate(direct):
        for j in earlier:
            after[j].append(i)
    ready = [(source.random(), i) for i, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    out = []
    while ready:
        _, i = heapq.heappop(ready)
        out.append(i)
        for j in after[i]:
            missing[j] -= 1
            if not missing[j]:
                heapq.heappush(ready, (source.random(), j))
    return out
