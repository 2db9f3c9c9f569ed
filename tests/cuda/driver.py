"""NVIDIA's driver without a GPU: memory of the host stands for a GPU's, and what was asked for is noted."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from mlx_ferrum.kernels.cuda import driver, runner, upload
from mlx_ferrum.launch import Kernel, Launch

OUT_OF_MEMORY = 2
CONTEXT = 77
FUNCTIONS = {  # those that do more than succeed
    "cuDevicePrimaryCtxRetain": "_retain",
    "cuCtxSetCurrent": "_make_current",
    "cuMemGetInfo_v2": "_tell_free",
    "cuMemcpyHtoD_v2": "_copy",
    "cuStreamSynchronize": "_finish",
    "cuGetErrorString": "_explain",
}


@dataclass
class FakeDriver:
    """In the place of libcuda. Functions are called as the C library's are, and return its results.

    free: bytes that cuMemGetInfo tells of
    failing: the function that finds no memory
    copies: (source, bytes) of every copy from the host
    pending: what a copy has read, and where it goes when its stream is waited for
    names: of the functions that were called
    """

    free: int = 1 << 40
    failing: str = ""
    copies: list[tuple[int, int]] = field(default_factory=list)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    context: int | None = None

    def __hash__(self) -> int:  # of a library: it is itself
        return id(self)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.names.append(name)
            if name == self.failing:
                return OUT_OF_MEMORY
            return int(getattr(self, FUNCTIONS[name])(*arguments)) if name in FUNCTIONS else 0

        return call

    def _retain(self, found: Any, _device: Any) -> int:
        found._obj.value = CONTEXT
        return 0

    def _make_current(self, context: ctypes.c_void_p) -> int:
        self.context = context.value
        return 0

    def _tell_free(self, free: Any, total: Any) -> int:
        assert self.context == CONTEXT
        free._obj.value, total._obj.value = self.free, 1 << 41
        return 0

    def _copy(self, target: ctypes.c_uint64, source: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        assert self.context == CONTEXT
        self.copies.append((int(source.value or 0), size.value))
        self.pending.append((target.value, ctypes.string_at(source, size.value)))
        return 0

    def _finish(self, _stream: Any) -> int:
        for target, data in self.pending:
            ctypes.memmove(target, data, len(data))
        self.pending.clear()
        return 0

    def _explain(self, _result: int, text: Any) -> int:
        text._obj.value = b"out of memory"
        return 0


def addresses(kernel: Kernel, call: Launch) -> list[mx.array]:
    """The runner for kernels that tell addresses: those of the host."""
    outputs = [mx.zeros(s, d) for s, d in zip(call.output_shapes, call.output_dtypes, strict=True)]
    mx.eval(outputs)
    x = call.arrays[0] if kernel is upload.ADDRESS else outputs[0]
    outputs[-1] = mx.array([np.asarray(x).ctypes.data], mx.uint64)
    return outputs


@contextmanager
def fake_gpu(**options: Any) -> Iterator[FakeDriver]:
    """Within, weights are uploaded as to a GPU. options: of FakeDriver"""
    fake = FakeDriver(**options)
    with (
        mock.patch.object(driver, "_driver", lambda: fake),
        mock.patch.object(upload, "run", addresses),
        mock.patch.object(mx.cuda, "is_available", lambda: True),
        mock.patch.object(runner, "architecture", lambda: "sm_90"),
    ):
        yield fake
