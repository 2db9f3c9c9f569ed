"""Stacks of matrices that are read from the file when they are wanted; see streamed.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_long
from typing import NamedTuple

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

    used, read: uses of an expert's matrices, once for each pass, and those that had to be read
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
    Raises MemoryError if there is no memory for the slots.
    """

    def __init__(
        self, count: int, slots: int, sources: Sequence[Source], age: float, files: object
    ) -> None:
        library = native.library()
        self.slots, self._files = slots, files
        self._free, self._counts = library.ferrum_streamed_free, library.ferrum_streamed_counts
        self._follow = library.ferrum_streamed_follow
        self._follower: Stream | None = None
        given = native.sources(sources)
        self.address: int | None = library.ferrum_streamed(count, slots, len(sources), given, age)
        if self.address is None:
            nbytes = slots * sum(source.nbytes for source in sources)
            raise MemoryError(f"there is no memory for {slots} experts of {nbytes} bytes")

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

    def __del__(self) -> None:
        if getattr(self, "address", None) is not None:
            self._free(self.address)
