"""The compiled library: which one is in use, calling it, and recording calls to replay them."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_int, c_long
from functools import cache
from pathlib import Path
from typing import Any

from . import build, calls, layout
from .calls import KINDS, Arguments, Call, recorded

_current: ctypes.CDLL | None = None
_level = "native"


def library() -> ctypes.CDLL:
    """The library in use; the one for this processor, built if need be, unless another was chosen."""
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
def _load(level: str) -> ctypes.CDLL:
    path = build.library(level)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:  # a folder mounted noexec, for example
        raise build.BuildError(f"the compiled CPU kernels cannot be loaded: {error}") from error
    layout.check(loaded, path, calls.structs(), "calls.py")
    for function in (loaded.ferrum_simd, loaded.ferrum_compiler):
        function.restype = ctypes.c_char_p
    for kind in KINDS:
        _declare(getattr(loaded, kind.symbol), POINTER(kind))
    _declare(loaded.ferrum_replay, POINTER(Call), c_int, c_long)
    _declare(loaded.ferrum_set_threads, c_int)
    return loaded


def _declare(function: Any, *arguments: Any) -> None:
    function.argtypes, function.restype = arguments, None


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Recording:
    """Calls as they were made, and all that their pointers point to."""

    def __init__(self) -> None:
        self.calls: list[Arguments] = []
        self.memory: list[Any] = []
        self._library = library()
        self._replayed: ctypes.Array[Call] | None = None

    def replay(self, later: int) -> None:
        """The same calls into the same memory, `later` positions further on; see replay.h."""
        if self._replayed is None:
            self._replayed = recorded(self.calls)
        self._library.ferrum_replay(self._replayed, len(self.calls), later)


class _Thread(threading.local):
    """The recording of this thread that is being made."""

    recording: Recording | None = None


_thread = _Thread()


def run(call: Arguments, *memory: Any) -> None:
    """Make a call. memory: all that its pointers point to."""
    getattr(library(), call.symbol)(ctypes.byref(call))
    if (recording := _thread.recording) is not None:
        recording.calls.append(call)
        recording.memory.append(memory)


@contextmanager
def recording() -> Iterator[Recording]:
    """Record the calls that this thread makes meanwhile."""
    assert _thread.recording is None
    _thread.recording = made = Recording()
    try:
        yield made
    finally:
        _thread.recording = None
