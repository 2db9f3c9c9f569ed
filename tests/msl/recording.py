"""What was encoded, and the memory that it uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_ferrum.launch import Kernel, Launch


class Extent(NamedTuple):
    """Bytes of memory, from an address to another."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def within(self, other: Extent) -> bool:
        return other.start <= self.start and self.stop <= other.stop

    def overlaps(self, other: Extent) -> bool:
        return self.start < other.stop and other.start < self.stop


class Bound(NamedTuple):
    """An array as a launch binds it: contiguous."""

    extent: Extent
    shape: tuple[int, ...]
    dtype: mx.Dtype


@dataclass(frozen=True)
class Launched:
    """A launch that can be made again; `call` has no arrays.

    results: the bytes of its outputs, then of the inputs that it writes, when it was recorded
    """

    kernel: Kernel
    call: Launch
    inputs: tuple[Bound, ...]
    outputs: tuple[Bound, ...]
    results: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Copied:
    """A contiguous copy: `strides` in bytes, from `first` on."""

    source: Extent
    target: Extent
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class Computed:
    """An operation of MLX, with what it made when it was recorded; nothing where no array shows it."""

    results: tuple[tuple[Extent, np.ndarray], ...] = ()


@dataclass(frozen=True)
class Work:
    """A dispatch.

    reads: inputs that it binds, those that it writes in place among them
    outputs: what it registers as outputs
    writes: inputs that it writes, which MLX does not know
    elements: of each input and output in turn, as they count towards a commit
    ends: whether MLX may commit after it; a fill or a copy belongs to the launch that follows
    library: MLX's name of the compiled kernel; text: bytes of its text
    updates: what an operation of MLX returns with changes, of which it makes a copy while others hold it
    """

    name: str
    reads: tuple[Extent, ...]
    outputs: tuple[Extent, ...]
    writes: tuple[Extent, ...] = ()
    elements: tuple[int, ...] = ()
    ends: bool = True
    library: str = ""
    text: int = 0
    updates: Extent | None = None
    action: Launched | Copied | Computed = field(default=Computed(), repr=False)

    def without(self, extent: Extent) -> Work:
        """The same, if it did not bind this input."""
        kept = [i for i, x in enumerate(self.reads) if x != extent]
        return replace(
            self,
            reads=tuple(self.reads[i] for i in kept),
            elements=tuple(self.elements[i] for i in kept if i < len(self.elements))
            + self.elements[len(self.reads) :],
        )


COMMIT, WAIT = "commit", "wait"


@dataclass
class Recording:
    """What was encoded, in this order.

    events: dispatches; COMMIT where an evaluation ends, WAIT where it is waited for
    given: memory that nothing here wrote, as it was when it was first seen
    """

    events: list[Work | str] = field(default_factory=list)
    given: list[tuple[Extent, np.ndarray]] = field(default_factory=list)

    @property
    def works(self) -> list[Work]:
        return [event for event in self.events if isinstance(event, Work)]


def merged(extents: Iterable[Extent]) -> list[tuple[Extent, list[Extent]]]:
    """What overlapping extents cover together, and which they are."""
    out: list[tuple[Extent, list[Extent]]] = []
    for extent in sorted({*extents}):
        whole = out[-1][0] if out else Extent(0, 0)
        if out and extent.start < whole.stop:
            out[-1] = Extent(whole.start, max(whole.stop, extent.stop)), [*out[-1][1], extent]
        else:
            out.append((extent, [extent]))
    return out
