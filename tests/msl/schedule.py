"""The order that MLX's Metal encoder gives to dispatches, and pairs of them that conflict without one.

Dispatches of a command buffer run at the same time between barriers. The encoder puts a barrier before a dispatch
that binds an output of one since the last barrier, or registers an output that one has bound; a barrier holds back
everything after it. A command buffer waits for the last one that registered an output which it binds, by a fence.
It ends once it has more than a number of dispatches or more than so many elements of distinct buffers.
A kernel that writes an input is no writer to the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .recording import WAIT, Computed, Copied, Extent, Launched, Recording, Work, merged


@dataclass(frozen=True)
class Limits:
    """What a command buffer may pass by one; elements in units of 2^20. The defaults are a base or Pro chip's."""

    operations: int = 40
    elements: int = 40


# Each operation a command buffer: only outputs that are bound give an order. Whatever is ordered here is ordered
# wherever MLX commits, and in each order in which it may encode a graph.
APART = Limits(0)


@dataclass(frozen=True)
class Conflict:
    """Two dispatches, of which one writes memory that the other may read or write, in no order.

    earlier, later: names; numbers: their places among the dispatches
    """

    earlier: str
    later: str
    numbers: tuple[int, int]

    def __str__(self) -> str:
        a, b = self.numbers
        return f"{self.earlier} ({a}) and {self.later} ({b}) use the same memory in no order"


@dataclass
class Schedule:
    """Dispatches and their order.

    before: for each dispatch those that end before it begins, a bit each
    fences: waits of one command buffer for another; commits: command buffers
    """

    works: list[Work] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    barriers: int = 0
    fences: int = 0
    commits: int = 0
    waits: int = 0

    def conflicts(self) -> list[Conflict]:
        """All pairs that use the same bytes, one of them writing, without an order."""
        out = []
        for later, second in enumerate(self.works):
            for earlier, first in enumerate(self.works[:later]):
                ordered = self.before[later] >> earlier & 1
                if not ordered and _conflict(first, second):
                    out.append(Conflict(first.name, second.name, (earlier, later)))
        return out


def schedule(recorded: Recording, limits: Limits = Limits()) -> Schedule:
    """Encode a recording as MLX does."""
    encoder = _Encoder(limits, _buffers(recorded))
    for event in recorded.events:
        if isinstance(event, Work):
            encoder.dispatch(event)
        else:
            encoder.commit()
            if event == WAIT:
                encoder.wait()
    encoder.commit()
    return encoder.made


@dataclass(frozen=True)
class Counts:
    """What a recording costs.

    launches: of kernels; operations: MLX's own, that compute or copy
    kernels: distinct ones, which are compiled; text: bytes handed over, all launches together
    copies, copied: of arrays that are not contiguous, and of what is updated while a command buffer in flight holds
        it; and their bytes
    barriers, fences, commits, waits: of its schedule
    """

    launches: int
    operations: int
    kernels: int
    text: int
    copies: int
    copied: int
    barriers: int
    fences: int
    commits: int
    waits: int


def counts(recorded: Recording, limits: Limits = Limits()) -> Counts:
    """Count what was recorded, in command buffers of these limits."""
    made = schedule(recorded, limits)
    launched = [work for work in made.works if isinstance(work.action, Launched)]
    copies = [*_copies(recorded)]
    return Counts(
        len(launched),
        sum(isinstance(work.action, Computed) for work in made.works),
        len({work.library for work in launched}),
        sum(work.text for work in launched),
        len(copies),
        sum(copies),
        made.barriers,
        made.fences,
        made.commits,
        made.waits,
    )


def _copies(recorded: Recording) -> Iterator[int]:
    """The bytes of each copy."""
    in_flight: list[Extent] = []
    for event in recorded.events:
        if not isinstance(event, Work):
            in_flight = [] if event == WAIT else in_flight
            continue
        if isinstance(event.action, Copied):
            yield event.action.target.nbytes
        elif event.updates and _overlap([event.updates], in_flight):
            yield event.updates.nbytes
        siblings = event.outputs if len(event.outputs) > 1 else ()
        in_flight += [*event.reads, *siblings]  # MLX lets go of a single output


class _Encoder:
    """MLX's CommandEncoder; memory is known by the numbers of its buffers."""

    def __init__(self, limits: Limits, buffers: dict[Extent, int]) -> None:
        self.limits, self.buffers = limits, buffers
        self.made = Schedule()
        self.writer: dict[
            int, int
        ] = {}  # buffer -> dispatches of its last command buffer, and before it
        self.waited = 0  # what the host has waited for
        self._begin()

    def _begin(self) -> None:
        self.operations = 0
        self.elements = 0
        self.bound: set[int] = set()
        self.registered: set[int] = set()
        self.own: list[
            tuple[int, int]
        ] = []  # dispatches, and those of this command buffer before each
        self.passed, self.encoded = 0, 0  # dispatches before the last barrier, and all
        self.inputs: set[int] = set()  # since the last barrier
        self.outputs: set[int] = set()

    def dispatch(self, work: Work) -> None:
        inputs = [self.buffers[x] for x in work.reads]
        outputs = [self.buffers[x] for x in work.outputs]
        bound = {*inputs, *outputs}
        if bound & self.outputs or {*outputs} & self.inputs:
            self.made.barriers += 1
            self.passed = self.encoded
            self.inputs, self.outputs = set(), set()
        self.inputs |= bound
        self.outputs |= {*outputs}
        for buffer, elements in zip([*inputs, *outputs], work.elements, strict=False):
            self.elements += 0 if buffer in self.bound else elements
            self.bound.add(buffer)
        self.bound |= bound
        self.registered |= {*outputs}
        self._add(work)
        if work.ends and self._is_full():
            self.commit()

    def _add(self, work: Work) -> None:
        number = len(self.made.works)
        self.made.works.append(work)
        self.own.append((number, self.passed))
        self.encoded |= 1 << number
        self.operations += 1

    def _is_full(self) -> bool:
        limits = self.limits
        return self.operations > limits.operations or self.elements >> 20 > limits.elements

    def commit(self) -> None:
        if not self.own:
            return
        waits = {self.writer[buffer] for buffer in self.bound if buffer in self.writer}
        earlier = self.waited
        for mask in waits:
            earlier |= mask
        self.made.before += [earlier | passed for _, passed in self.own]
        self.made.fences += len(waits)
        self.made.commits += 1
        self.writer.update(dict.fromkeys(self.registered, earlier | self.encoded))
        self._begin()

    def wait(self) -> None:
        self.made.waits += 1
        self.waited = (1 << len(self.made.works)) - 1
        self.writer = {}


def _conflict(first: Work, second: Work) -> bool:
    wrote, writes = (*first.writes, *first.outputs), (*second.writes, *second.outputs)
    return _overlap(wrote, (*second.reads, *writes)) or _overlap(first.reads, writes)


def _overlap(some: Sequence[Extent], others: Sequence[Extent]) -> bool:
    return any(x.overlaps(y) for x in some for y in others)


def _buffers(recorded: Recording) -> dict[Extent, int]:
    """The buffer of each extent; extents that overlap are of one."""
    used = (x for work in recorded.works for x in (*work.reads, *work.outputs))
    return {x: i for i, (_, parts) in enumerate(merged(used)) for x in parts}
