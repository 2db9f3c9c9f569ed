"""The compiled library, typed for ctypes. Knows pointers and sizes; shapes are the backend's."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_float, c_int, c_long, c_void_p
from functools import cache

from . import build


class Weight(Structure):
    """A matrix of blocks in the file."""

    _fields_ = (("data", c_void_p), ("type", c_long), ("rows", c_long))


class Attention(Structure):
    """See attention.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out")),
        *(
            (name, c_int)
            for name in ("batch", "heads", "groups", "length", "held", "d", "dv", "window")
        ),
        *(
            (name, c_long)
            for name in ("k_batch", "k_head", "k_stride", "v_batch", "v_head", "v_stride")
        ),
        ("scale", c_float),
    )


class NormRope(Structure):
    """See layers.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "frequencies", "offset", "out")),
        *((name, c_int) for name in ("batch", "length", "heads", "d", "pairs", "interleaved")),
        *((name, c_float) for name in ("magnitude", "eps")),
    )


_SIGNATURES = {
    "ferrum_set_threads": (c_int,),
    "ferrum_matmuls": (c_void_p, c_int, c_int, POINTER(Weight), c_int, c_void_p),
    "ferrum_gate_up": (c_void_p, c_int, c_int, POINTER(Weight), c_int, c_void_p),
    "ferrum_rows": (POINTER(Weight), c_void_p, c_int, c_int, c_void_p),
    "ferrum_attend": (POINTER(Attention),),
    "ferrum_norm_rope": (POINTER(NormRope),),
    "ferrum_rms_norm": (c_void_p, c_void_p, c_long, c_int, c_float, c_void_p),
}


_current: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The library in use; the one for this processor, built if need be, unless another was chosen."""
    if _current is None:
        choose()
    assert _current is not None
    return _current


def choose(*, portable: bool = False) -> None:
    """Use the library without SIMD of a particular processor, or the one for this processor."""
    global _current
    _current = _load(portable)


@cache
def _load(portable: bool) -> ctypes.CDLL:
    path = build.library(portable=portable)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:  # a folder mounted noexec, for example
        raise build.BuildError(f"the compiled CPU kernels cannot be loaded: {error}") from error
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    loaded.ferrum_simd.restype = ctypes.c_char_p
    return loaded


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
