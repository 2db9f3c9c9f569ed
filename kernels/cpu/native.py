"""The compiled library: which one is in use, calling it, and recording calls to make them again."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_char, c_char_p, c_double, c_int, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from . import build, calls

DONE, REFUSED, NOT_READ = 0, 1, 3  # of the statuses in api.cpp
NUMBERS = (int, float, type(None))  # what goes into a struct as it is


class Call(Structure):
    """One call: the number of its kind, and where its arguments lie."""

    _fields_ = (("kind", c_long), ("arguments", c_void_p))


class _Library(NamedTuple):
    """A loaded library, and the structs that it takes: name -> number and struct."""

    loaded: ctypes.CDLL
    weight: type[Structure]
    source: type[Structure]
    kinds: dict[str, tuple[int, type[Structure]]]


_current: _Library | None = None
_level = "native"


def library() -> ctypes.CDLL:
    """The library in use; the one for this processor, built if need be, unless another was chosen."""
    return _library().loaded


def _library() -> _Library:
    if _current is None:
        choose(_level)
    assert _current is not None
    return _current


def choose(level: str) -> str:
    """Use the library for a level of build.LEVELS. Returns the level that was in use."""
    global _current, _level
    before = _level
    _current, _level = _load(level), level
    return before


def path() -> Path:
    """The file of the library in use."""
    return Path(library()._name)


@cache
def _load(level: str) -> _Library:
    loaded, structs = load(build.library(level), "CPU kernels")
    for function in (loaded.ferrum_simd, loaded.ferrum_compiler, loaded.ferrum_error):
        function.restype = c_char_p
    loaded.ferrum_run.argtypes, loaded.ferrum_run.restype = (POINTER(Call), c_int), c_int
    loaded.ferrum_set_threads.argtypes, loaded.ferrum_set_threads.restype = (c_int,), None
    loaded.ferrum_streamed.argtypes = (c_int, c_int, c_int, c_void_p, c_double, c_int)
    loaded.ferrum_streamed_slots.argtypes = (c_void_p, c_int)
    for function in (loaded.ferrum_streamed, loaded.ferrum_streamed_slots):
        function.restype = c_void_p
    loaded.ferrum_streamed_note_used.argtypes = (c_void_p, c_int)
    loaded.ferrum_streamed_note_used.restype = None
    loaded.ferrum_streamed_is_whole.argtypes = (c_void_p,)
    loaded.ferrum_streamed_is_whole.restype = c_int
    for function in (loaded.ferrum_streamed_follow, loaded.ferrum_streamed_counts):
        function.argtypes, function.restype = (c_void_p, c_void_p), None
    loaded.ferrum_streamed_free.argtypes, loaded.ferrum_streamed_free.restype = (c_void_p,), None
    weight, source = structs.pop("Weight"), structs.pop("Source")
    return _Library(
        loaded, weight, source, {name: (n, s) for n, (name, s) in enumerate(structs.items())}
    )


def load(path: Path, what: str) -> tuple[ctypes.CDLL, dict[str, type[Structure]]]:
    """A compiled library and the structs that it describes. Raises BuildError if it cannot be loaded."""
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.ferrum_layout.restype = c_char_p
        return loaded, calls.structs(loaded.ferrum_layout().decode())
    except (OSError, ValueError) as error:  # a folder mounted noexec, for example
        raise build.BuildError(f"the compiled {what} cannot be loaded: {error}") from error


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def address(x: Any) -> int:
    """The address of an array, which must be contiguous."""
    # five times faster than x.ctypes.data
    return ctypes.addressof(c_char.from_buffer(x))


def weights(
    fields: list[tuple[int, int, int, int | None, int | None, int, int]],
) -> ctypes.Array[Structure]:
    """Weight structs: (address, ggml type, rows, address of the bias, of what streams it, its number there, step)."""
    struct: Any = _library().weight
    found: ctypes.Array[Structure] = (struct * len(fields))(*fields)
    return found


def sources(fields: Sequence[tuple[int, int, int, bool, int]]) -> ctypes.Array[Structure]:
    """Source structs: (file descriptor, offset, bytes, whether it bypasses the page cache, step) each."""
    struct: Any = _library().source
    found: ctypes.Array[Structure] = (struct * len(fields))(*fields)
    return found


def run(kind: str, **fields: Any) -> None:
    """Make a call. fields: all of its struct's; arrays, which must be contiguous, go as their addresses.

    Raises ValueError for arguments that the library refuses, OSError if an expert cannot be read from the file,
    MemoryError if it needs more memory than there is.
    """
    number, struct = _library().kinds[kind]
    arguments = struct()
    assert len(fields) == len(struct._fields_), f"{kind}: found {list(fields)}"
    for name, value in fields.items():
        setattr(arguments, name, value if isinstance(value, NUMBERS) else address(value))
    _run(ctypes.pointer(Call(number, ctypes.addressof(arguments))), 1)
    if (recording := _thread.recording) is not None:
        recording.append(number, arguments)


def _run(made: Any, count: int) -> None:
    loaded = library()
    status = loaded.ferrum_run(made, count)
    if status != DONE:
        message = loaded.ferrum_error().decode()
        raise {REFUSED: ValueError, NOT_READ: OSError}.get(status, MemoryError)(message)


class Recording:
    """Calls as they were made. The memory of their arguments must outlive it.

    kept: what has to live as long as the recording
    """

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self._numbers: list[int] = []
        self._arguments: list[Structure] = []
        self._calls: ctypes.Array[Call] | None = None

    def append(self, number: int, arguments: Structure) -> None:
        """Note a call."""
        self._numbers.append(number)
        self._arguments.append(arguments)

    def repeats(self, other: Recording) -> bool:
        """Whether both have the same calls, to the last byte."""
        return self._bytes() == other._bytes()

    def _bytes(self) -> list[tuple[int, bytes]]:
        return [(n, bytes(a)) for n, a in zip(self._numbers, self._arguments, strict=True)]

    def replay(self) -> None:
        """Make the same calls again. Raises what `run` raises."""
        if self._calls is None:
            pairs = zip(self._numbers, self._arguments, strict=True)
            made = [Call(number, ctypes.addressof(arguments)) for number, arguments in pairs]
            self._calls = (Call * len(made))(*made)
        _run(self._calls, len(self._numbers))


class _Thread(threading.local):
    """The recording of this thread that is being made."""

    recording: Recording | None = None


_thread = _Thread()


@contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Add the calls that this thread makes meanwhile to `recording`."""
    assert _thread.recording is None
    try:
        _thread.recording = recording
        yield
    finally:
        _thread.recording = None


def keep(x: Any) -> None:
    """Let x live as long as the recording that this thread makes, if it makes one."""
    if (recording := _thread.recording) is not None:
        recording.kept.append(x)
