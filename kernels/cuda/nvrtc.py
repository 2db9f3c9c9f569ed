"""NVIDIA's run-time compiler: the text of a kernel -> machine code for one architecture. It needs no GPU."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

OPTIONS = ("--device-as-default-execution-space", "--std=c++17", "--extra-device-vectorization")
MINIMAL, HAS_MINIMAL = "--minimal", (13, 0)  # leaves out textures and the like: a sixth of the time


class CompileError(RuntimeError):
    """Text that NVRTC refuses, or no NVRTC."""


def compile_text(text: str, architecture: str, name: str) -> bytes:
    """A cubin of `text` for `architecture`, as "sm_90".

    Raises CompileError with the compiler's messages, or if there is no NVRTC.
    """
    nvrtc = library()
    program = ctypes.c_void_p()
    _check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), f"{name}.cu".encode(), 0, None, None
        ),
        name,
    )
    try:
        options = [o.encode() for o in (f"--gpu-architecture={architecture}", *options_here())]
        failed = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        )
        if failed:
            raise CompileError(f"{name} for {architecture}:\n{_log(nvrtc, program)}")
        size = ctypes.c_size_t()
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), name)
        cubin = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, cubin), name)
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def options_here() -> tuple[str, ...]:
    """What NVRTC is told besides the architecture, by its version. Raises CompileError if there is none."""
    return (*OPTIONS, MINIMAL) if version() >= HAS_MINIMAL else OPTIONS


def version() -> tuple[int, int]:
    """NVRTC's version. Raises CompileError if there is none."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtc")
    return major.value, minor.value


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC as MLX's packages bring it, or the system's. Raises CompileError if there is none."""
    for path in _paths():
        try:
            for builtins in Path(path).parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))  # which the library looks for by name alone
            found = ctypes.CDLL(path)
        except OSError:
            continue
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        return found
    raise CompileError("no NVRTC: pip install nvidia-cuda-nvrtc, or mlx[cuda13], which brings it")


def _paths() -> Iterator[str]:
    for folder in sys.path:
        for pattern in ("nvidia/cu1?/lib/libnvrtc.so.*", "nvidia/cuda_nvrtc/lib/libnvrtc.so.*"):
            yield from sorted(map(str, Path(folder).glob(pattern)))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


def _check(result: int, name: str) -> None:
    if result:
        raise CompileError(f"{name}: {library().nvrtcGetErrorString(result).decode()}")


def _log(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace").strip()
