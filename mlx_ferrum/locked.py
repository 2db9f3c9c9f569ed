"""Weights locked in memory: once read, their pages stay there until the file is unmapped."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from . import amounts, gguf, memory, ops
from .system import first_line
from .tensor import QTensor, window

PIECE = 1 << 28  # bytes locked at a time: a call for more could not be interrupted for seconds
MAY_LOCK = 1 << 14  # CAP_IPC_LOCK of Linux, with which there is no limit
_STATUS = "/proc/self/status"

Span = tuple[int, int]  # of whole pages in a mapping: the first byte, and that after the last one


def lock(tensors: Sequence[QTensor], file: gguf.GGUF) -> int:
    """Lock the pages of tensors that a model uses, but for experts that are read from disk when they are chosen.

    They are read from the file, if need be. Returns their bytes. Raises OSError if the system refuses, and where more
    has to be locked than is free; NotImplementedError on an NVIDIA GPU, which has a copy.
    """
    if ops.backend_name() == "cuda":
        raise NotImplementedError(
            "mlock: weights are copied into the GPU's memory on the cuda backend, expected another one"
        )
    spans = list(_spans(tensors, file))
    nbytes, free = sum(stop - start for _, start, stop in spans), memory.available()
    if free is not None and nbytes > free:
        raise OSError(
            f"mlock: {amounts.size(nbytes)} of weights cannot be locked: only {amounts.size(free)} are free"
        )
    done: list[tuple[int, int]] = []
    for part, start, stop in spans:
        for at in range(start, stop, PIECE):
            piece = part.ctypes.data + at, min(PIECE, stop - at)
            if error := _call("mlock", *piece):
                for each in done:
                    _call("munlock", *each)
                raise OSError(f"mlock: {_refused(nbytes, error)}")
            done.append(piece)
    return nbytes


def limit() -> int | None:
    """Bytes that this process may lock, None if there is no limit."""
    capabilities = first_line(_STATUS, r"CapEff:\s*([0-9a-f]+)")
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    is_free = int(capabilities or "0", 16) & MAY_LOCK or most == resource.RLIM_INFINITY
    return None if is_free else most


def described(most: int, needed: int) -> str:
    """A limit that is too low, and how to raise it, for people."""
    kilobytes = -(-needed // 1024)
    return (
        f"the limit is {amounts.size(most)}, expected {kilobytes} KiB: ulimit -l {kilobytes} raises it, "
        "as root where the hard limit is lower"
    )


def _refused(nbytes: int, error: int) -> str:
    """Why so many bytes could not be locked. error: of the system"""
    held = 1024 * int(first_line(_STATUS, r"VmLck:\s*(\d+) kB") or 0)
    most, whole = limit(), nbytes + held
    beside = f" beside {amounts.size(held)} that are" if held else ""
    why = os.strerror(error) if most is None or whole <= most else described(most, whole)
    return f"{amounts.size(nbytes)} of weights cannot be locked in memory{beside}: {why}"


def _call(name: str, address: int, nbytes: int) -> int:
    """A function of the C library on whole pages; the number of its error, 0 if there is none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    return ctypes.get_errno() if function(address, nbytes) else 0


def _spans(tensors: Sequence[QTensor], file: gguf.GGUF) -> Iterator[tuple[np.ndarray, int, int]]:
    """The pages of the tensors in use, by the part of the file, in order and each once."""
    for part in file.parts:
        mine = [w for w in tensors if w.buffer is part and w.stream is None]
        for start, stop in _joined(window(w.offset, w.extent)[:2] for w in mine):
            yield part, start, stop


def _joined(spans: Iterable[Span]) -> list[Span]:
    found: list[Span] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found
