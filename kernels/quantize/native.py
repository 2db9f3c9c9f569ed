"""The compiled encoders: rows of float32 weights to blocks of any type, on all cores."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64
from functools import cache
from pathlib import Path

import numpy as np

from ..cpu import build
from ..cpu.native import cores, load

EFFORTS = ("fast", "normal", "best")
DONE = -1


def quantize(
    x: np.ndarray,
    importance: np.ndarray | None,
    out: np.ndarray,
    *,
    type: int,
    limit: float,
    effort: str,
    threads: int | None = None,
    level: str = "native",
) -> int | None:
    """Fill `out` with the blocks of x. All arrays are contiguous, and their shapes checked by the caller.

    x: (rows, k) float32
    importance: (n, k) float32, each row for rows / n rows of x, or None
    out: (rows, row bytes) uint8
    type: ggml's number; limit: what |x| must not exceed; effort: of EFFORTS
    threads: all cores by default; level: of build.LEVELS, the lower ones are for tests
    returns: the flat index of the first weight that is beyond the limit or not a number, else None
    """
    rows, k = x.shape
    library, struct = _library(level)
    job = struct(
        x=x.ctypes.data,
        importance=None if importance is None else importance.ctypes.data,
        out=out.ctypes.data,
        rows=rows,
        k=k,
        shared=rows if importance is None else rows // len(importance),
        type=type,
        effort=EFFORTS.index(effort),
        threads=cores() if threads is None else threads,
        limit=limit,
    )
    found: int = library.ferrum_quantize(ctypes.byref(job))
    assert found >= DONE, f"no encoder for ggml type {type}"
    return None if found == DONE else found


@cache
def _library(level: str) -> tuple[ctypes.CDLL, type[Structure]]:
    """The library and the struct that it takes."""
    path = build.library(level, folder=Path(__file__).parent)
    loaded, structs = load(path, "quantizers")
    struct = structs["Quantize"]
    loaded.ferrum_quantize.argtypes = [ctypes.POINTER(struct)]
    loaded.ferrum_quantize.restype = c_int64
    return loaded, struct
