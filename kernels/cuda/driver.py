"""The few calls of NVIDIA's driver that MLX has no word for: bytes of a mapped file straight into a GPU's memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_ferrum.launch import Header, Kernel, Launch

from .runner import run

_PRELUDE = Header(("prelude.metal",))
ADDRESS = Kernel("address", "address[0] = (uint64_t)x;", ("x",), ("address",), _PRELUDE)
ALLOCATE = Kernel("allocate", "address[0] = (uint64_t)y;", (), ("y", "address"), _PRELUDE)
_ONE = (1, 1, 1)
_NON_BLOCKING, _CAPTURE_THREAD = 1, 1


class DriverError(RuntimeError):
    """What the driver refuses."""


def upload(words: np.ndarray, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """The words, contiguous, as an array in the GPU's own memory; the host holds them once.

    Raises DriverError, RuntimeError if the memory is not to be had.
    """
    # not the runner in use, which may be another one
    y, address = run(ALLOCATE, Launch([], {}, _ONE, _ONE, [shape, (1,)], [dtype, mx.uint64], None))
    mx.eval(y, address)
    cuda = _driver()
    _check(cuda, cuda.cuCtxSetCurrent(_context(cuda)))
    _check(
        cuda,
        cuda.cuMemcpyHtoD_v2(
            ctypes.c_uint64(np.asarray(address)[0]),
            ctypes.c_void_p(words.ctypes.data),
            ctypes.c_size_t(words.nbytes),
        ),
    )
    return y


def address(x: mx.array) -> int:
    """Where an evaluated array lies in the GPU's memory."""
    (found,) = run(ADDRESS, Launch([x], {}, _ONE, _ONE, [(1,)], [mx.uint64], None))
    return int(np.asarray(found)[0])


class Stream:
    """A queue of the GPU besides MLX's own; what it works on must be evaluated and stay alive."""

    def __init__(self) -> None:
        self._cuda = _driver()
        self._call("cuCtxSetCurrent", _context(self._cuda))
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    def launch(
        self,
        function: ctypes.c_void_p,
        grid: Sequence[int],
        block: Sequence[int],
        pointers: Sequence[int],
        scalars: Sequence[int],
    ) -> None:
        """One kernel, on the arrays at `pointers`. grid: blocks"""
        arguments = [*map(ctypes.c_uint64, pointers), *map(ctypes.c_int32, scalars)]
        at = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        self._call("cuLaunchKernel", function, *grid, *block, 0, self._stream, at, None)

    def begin(self) -> None:
        """From now on launches are noted down, not run."""
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD)

    def end(self) -> ctypes.c_void_p:
        """What was noted down since `begin`, for `replay`."""
        graph, found = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(found), graph, ctypes.c_uint64(0))
        self._call("cuGraphDestroy", graph)
        return found

    def replay(self, graph: ctypes.c_void_p) -> None:
        """Run it again, after all that the stream has to do already."""
        self._call("cuGraphLaunch", graph, self._stream)

    def wait(self) -> None:
        """Until all is done."""
        self._call("cuStreamSynchronize", self._stream)

    def _call(self, name: str, *arguments: object) -> None:
        _check(self._cuda, getattr(self._cuda, name)(*arguments))


@functools.cache
def function(cubin: bytes, name: str) -> ctypes.c_void_p:
    """The kernel `name` of machine code. Raises DriverError if the GPU cannot run it."""
    cuda = _driver()
    _check(cuda, cuda.cuCtxSetCurrent(_context(cuda)))
    module, found = ctypes.c_void_p(), ctypes.c_void_p()
    _check(cuda, cuda.cuModuleLoadData(ctypes.byref(module), cubin))
    _check(cuda, cuda.cuModuleGetFunction(ctypes.byref(found), module, name.encode()))
    return found


@functools.cache
def _driver() -> ctypes.CDLL:
    cuda = ctypes.CDLL("libcuda.so.1")
    _check(cuda, cuda.cuInit(0))
    return cuda


@functools.cache
def _context(cuda: ctypes.CDLL) -> ctypes.c_void_p:
    """The one that MLX is in."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), 0))
    _check(cuda, cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    return context


def _check(cuda: ctypes.CDLL, result: int) -> None:
    if not result:
        return
    name = ctypes.c_char_p()
    cuda.cuGetErrorString(result, ctypes.byref(name))
    raise DriverError(f"NVIDIA's driver: {(name.value or b'').decode()} (error {result})")
