"""The few calls of NVIDIA's driver that MLX has no word for: copies into a GPU's memory, and launches recorded once."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

_NON_BLOCKING, _CAPTURE_THREAD = 1, 1


class DriverError(RuntimeError):
    """What the driver refuses."""


def call(name: str, *arguments: object) -> None:
    """A function of the driver, in MLX's context. Raises DriverError if it fails, OSError without a driver."""
    cuda = _driver()
    _check(cuda, cuda.cuCtxSetCurrent(_context(cuda)))
    _check(cuda, getattr(cuda, name)(*arguments))


def copy_to_device(target: int, source: int, nbytes: int) -> None:
    """Copy bytes of the host to an address of the GPU, and wait until they are there."""
    call("cuMemcpyHtoD_v2", ctypes.c_uint64(target), ctypes.c_void_p(source), _size(nbytes))
    # the copy returns when the source is read; MLX's streams do not wait for the default one, which it is on
    call("cuStreamSynchronize", ctypes.c_void_p())


class Stream:
    """A queue of the GPU besides MLX's own; what it works on must be evaluated and stay alive."""

    def __init__(self) -> None:
        self._stream = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

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
        call("cuLaunchKernel", function, *grid, *block, 0, self._stream, at, None)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy bytes between two addresses of the GPU."""
        places = ctypes.c_uint64(target), ctypes.c_uint64(source)
        call("cuMemcpyDtoDAsync_v2", *places, _size(nbytes), self._stream)

    def begin(self) -> None:
        """From now on launches are noted down, not run."""
        call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD)

    def end(self) -> ctypes.c_void_p:
        """What was noted down since `begin`, for `replay`."""
        graph, found = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        call("cuGraphInstantiateWithFlags", ctypes.byref(found), graph, ctypes.c_uint64(0))
        call("cuGraphDestroy", graph)
        return found

    def replay(self, graph: ctypes.c_void_p) -> None:
        """Run it again, after all that the stream has to do already."""
        call("cuGraphLaunch", graph, self._stream)

    def wait(self) -> None:
        """Until all is done."""
        call("cuStreamSynchronize", self._stream)


@functools.cache
def function(cubin: bytes, name: str) -> ctypes.c_void_p:
    """The kernel `name` of machine code. Raises DriverError if the GPU cannot run it."""
    module, found = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuModuleLoadData", ctypes.byref(module), cubin)
    call("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
    return found


def _size(nbytes: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(nbytes)


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
