"""Stacks of matrices that are read from the file when they are wanted; see streamed.h."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import c_long
from typing import Any, NamedTuple

import numpy as np

from . import native


class Source(NamedTuple):
    """Where the matrices of a stack lie.

    file: a descriptor, which has to stay open
    offset: bytes, of the first matrix
    nbytes: of each
    direct: the descriptor bypasses the page cache
    step: bytes from a matrix to the next one
    """

    file: int
    offset: int
    nbytes: int
    direct: bool
    step: int


class Counts(NamedTuple):
    """What happened so far.

    used, read: uses of an expert's matrices, once for each pass (where a GPU has all of them, as many as the pass could
        use), and those that had to be read
    nbytes: read
    waited: seconds, of all threads
    judged, foretold: uses in passes for which experts were predicted, and those of them that were predicted
    ahead, useful: matrices that were read before they were chosen, and those of them that were used next
    """

    used: int
    read: int
    nbytes: int
    waited: float
    judged: int
    foretold: int
    ahead: int
    useful: int


class Stream:
    """Stacks whose matrices of one number are read together, in one read if they lie side by side.

    address: as weights have it

    count: matrices in each stack
    slots: how many of them are in memory
    age: how much older a call is than the one before; a use an age ago counts e times less for what is kept
    files: what keeps the sources' descriptors open
    apart: the slots of each source lie together, as a stack of `slots` matrices; no source may be direct
    Raises MemoryError if there is no memory for the slots.
    """

    def __init__(
        self,
        count: int,
        slots: int,
        sources: Sequence[Source],
        age: float,
        files: object,
        *,
        apart: bool = False,
    ) -> None:
        library = native.library()
        self.count, self.slots, self.apart = count, slots, apart
        self._sources, self._files = tuple(sources), files
        self.guard: Any = None  # of a GPU that computes from the slots
        self._free, self._counts = library.ferrum_streamed_free, library.ferrum_streamed_counts
        self._follow = library.ferrum_streamed_follow
        self._follower: Stream | None = None
        given = native.sources(sources)
        self.address: int | None = library.ferrum_streamed(
            count, slots, len(sources), given, age, apart
        )
        self._library = library
        if self.address is None:
            nbytes = slots * sum(source.nbytes for source in sources)
            raise MemoryError(f"there is no memory for {slots} experts, {nbytes} bytes in all")

    def followed_by(self, other: Stream) -> None:
        """What is wanted of this one is wanted of the other one next."""
        self._follower = other
        self._follow(self.address, other.address)

    def counts(self) -> Counts:
        """What happened so far."""
        found = (c_long * len(Counts._fields))()
        self._counts(self.address, ctypes.addressof(found))
        used, read, nbytes, waited, *predicted = found
        return Counts(used, read, nbytes, waited / 1e9, *predicted)

    @property
    def is_whole(self) -> bool:
        """Whether all matrices are in memory for good, number i in slot i."""
        return bool(self._library.ferrum_streamed_is_whole(self.address))

    def note_used(self, count: int) -> None:
        """So many uses found their matrix, of a stream that is whole."""
        self._library.ferrum_streamed_note_used(self.address, count)

    def stack(self, source: int) -> np.ndarray:
        """The slots of a source, of those that lie apart: (slots * bytes of a matrix,) uint8, from a page on.

        What is read later is read into it. The stream lives as long as the array.
        """
        assert self.apart
        start = self._library.ferrum_streamed_slots(self.address, source)
        return np.asarray(_Slots(self, start, self.slots * self._sources[source].nbytes))

    def portions(self, numbers: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Read numbers, each once, in portions that fit the slots: which of them, and the slots where they are.

        They stay there until the next portion is asked for, or the iterator is closed, by the same thread; others wait
        meanwhile. Raises OSError if one cannot be read.
        """
        numbers = np.ascontiguousarray(numbers, np.int32)
        slots, span = np.empty_like(numbers), np.empty(2, np.int32)
        opened = c_long()
        native.run(
            "BeginPortions",
            streamed=self.address,
            numbers=numbers if numbers.size else None,
            opened=ctypes.addressof(opened),
            count=numbers.size,
        )
        try:
            while True:
                native.run("NextPortion", opened=opened.value, range=span, slots=slots)
                found = slice(int(span[0]), int(span[1]))
                if found.start == found.stop:
                    return
                yield found, slots[found]
        finally:
            native.run("EndPortions", opened=opened.value)

    def __del__(self) -> None:
        if getattr(self, "address", None) is not None:
            self._free(self.address)


class _Slots:
    """Memory of a stream as an array interface, which keeps the stream."""

    def __init__(self, stream: Stream, start: int, nbytes: int) -> None:
        self.stream = stream
        self.__array_interface__ = {
            "version": 3,
            "data": (start, True),
            "shape": (nbytes,),
            "typestr": "|u1",
        }
