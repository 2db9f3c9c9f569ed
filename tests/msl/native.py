"""The runtime's data, through ctypes."""

from __future__ import annotations

import ctypes
import functools
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import compiler
from .translate import ENTRY

PAD = 16 << 10  # bytes on either side of a buffer that can be read and written
DISTANCE = 1 << 30  # bytes without memory beyond that
_MAP_NORESERVE = 0x4000
INPUT, OUTPUT, INITIALISED = range(3)  # Role in runtime.h
_CAPACITY = 64
_Triple = ctypes.c_uint32 * 3
_one_launch = threading.Lock()  # at a time: the runtime keeps its workers


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("role", ctypes.c_uint32),
    ]


class _Finding(ctypes.Structure):
    _fields_ = [
        ("site", ctypes.c_uint64),
        ("kind", ctypes.c_char * 40),
        ("detail", ctypes.c_char * 88),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("findings", ctypes.POINTER(_Finding)),
        ("buffer_count", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("finding_count", ctypes.c_uint32),
        ("grid", _Triple),
        ("group", _Triple),
        ("seed", ctypes.c_uint32),
        ("checked", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("fill", ctypes.c_uint32),
        ("seconds", ctypes.c_double),
    ]


@dataclass(frozen=True)
class Raw:
    """A finding as the runtime has it; site: offset in the library, 0 if it has no place there."""

    site: int
    kind: str
    detail: str


@dataclass(frozen=True)
class Memory:
    """A buffer: its bytes, and what the kernel may do with it (INPUT, OUTPUT or INITIALISED)."""

    data: np.ndarray
    role: int


def run(
    library: Path,
    memory: Sequence[Memory],
    *,
    grid: tuple[int, int, int],
    group: tuple[int, int, int],
    seed: int,
    checked: bool,
    threads: int,
    fill: int = 0xFF,
    seconds: float = 120,
) -> list[Raw]:
    """Run a kernel; it writes into the memory it is given. fill, seconds: as Host has them"""
    buffers = (_Buffer * len(memory))(
        *(_Buffer(m.data.ctypes.data, m.data.nbytes, m.role) for m in memory)
    )
    findings = (_Finding * _CAPACITY)()
    launch = _Launch(
        ctypes.cast(getattr(_loaded(library), ENTRY), ctypes.c_void_p),
        buffers,
        findings,
        len(memory),
        _CAPACITY,
        0,
        _Triple(*grid),
        _Triple(*group),
        seed,
        checked,
        threads,
        fill,
        seconds,
    )
    with _one_launch:
        _loaded(compiler.runtime()).msl_run(ctypes.byref(launch))
    return [
        Raw(f.site, f.kind.decode(), f.detail.decode()) for f in findings[: launch.finding_count]
    ]


def padded(data: np.ndarray, offset: int = 0, fill: int = 0xFF) -> np.ndarray:
    """A copy of the bytes, `offset` past a multiple of 64, between bytes `fill` for what goes past the ends."""
    page = mmap.PAGESIZE
    size = -(-(data.nbytes + 2 * PAD + 128) // page) * page
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    space = np.frombuffer(mmap.mmap(-1, size + 2 * DISTANCE, flags), np.uint8)
    for edge in (space, space[DISTANCE + size :]):
        _forbid(edge[:DISTANCE])
    room = space[DISTANCE : DISTANCE + size]
    start = PAD + -(room.ctypes.data + PAD) % 64 + offset
    stop = start + data.nbytes
    room[:start] = room[stop:] = fill
    room[start:stop] = data.reshape(-1).view(np.uint8)
    return room[start:stop]


def _forbid(room: np.ndarray) -> None:
    """Makes every access to whole pages a fault."""
    at, size = ctypes.c_void_p(room.ctypes.data), ctypes.c_size_t(room.nbytes)
    if _libc().mprotect(at, size, 0):
        raise OSError(ctypes.get_errno(), "no pages around a buffer")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _loaded(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))
