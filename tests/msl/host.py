"""A runner for mlx_ferrum.launch that executes kernels on this CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from mlx_ferrum import launch
from mlx_ferrum.launch import Kernel, Launch

from . import compiler, native
from .findings import Finding, located
from .native import INITIALISED, INPUT, OUTPUT, Memory
from .signature import Signature, signature

MAX_THREADS = 1024
_OS_THREADS = 2


class KernelError(RuntimeError):
    """What a GPU would not run, or what went wrong in plain mode."""


@dataclass
class Host:
    """Runs kernels; in checked mode notes what is wrong with them, in plain mode raises KernelError.

    seed: 0 runs simdgroups and threadgroups in their order, others mix them
    edit: what is run in a kernel's place, for mutation tests
    kernels: those that ran
    fill: the bytes of outputs, pads and threadgroup memory that nothing wrote
    seconds: of a processor's time, after which a launch counts as endless
    """

    checked: bool = False
    seed: int = 0
    edit: Callable[[Kernel], Kernel] | None = None
    findings: list[Finding] = field(default_factory=list)
    kernels: dict[Kernel, None] = field(default_factory=dict)
    fill: int = 0xFF
    seconds: float = 120

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        """Run one launch now. Raises SourceError, KernelError, ValueError."""
        self.kernels[kernel] = None
        kernel = self.edit(kernel) if self.edit else kernel
        call = replace(call, arrays=[_as_array(x) for x in call.arrays])
        made = signature(kernel, call)
        _check_sizes(kernel, call)
        outputs = [
            _fresh(shape, dtype, call.init_value, self.fill)
            for shape, dtype in zip(call.output_shapes, call.output_dtypes, strict=True)
        ]
        memory = _memory(made, call, outputs, kernel.writes, fill=self.fill)
        self._execute(made, call, memory)
        keep_written(kernel, call, {b.name: m for b, m in zip(made.buffers, memory, strict=True)})
        return [_array(o, d) for o, d in zip(outputs, call.output_dtypes, strict=True)]

    def _execute(self, made: Signature, call: Launch, memory: list[Memory]) -> None:
        library = compiler.library(made, compiler.CHECKED if self.checked else compiler.PLAIN)
        raw = native.run(
            library,
            memory,
            grid=call.grid,
            group=call.threadgroup,
            seed=self.seed,
            checked=self.checked,
            threads=1 if self.checked else _OS_THREADS,
            fill=self.fill,
            seconds=self.seconds,
        )
        self._note([located(made, library, r) for r in raw])

    def _note(self, found: list[Finding]) -> None:
        if found and not self.checked:
            raise KernelError("; ".join(map(str, found)))
        self.findings = list(dict.fromkeys([*self.findings, *found]))


@contextmanager
def metal_on_cpu(checked: bool = False, seed: int = 0) -> Iterator[Host]:
    """Within, launches run on this CPU; where there is Metal, on the GPU, and nothing is ever found.

    Yields the host, whose `findings` are what checked mode found.
    """
    host = Host(checked, seed)
    with launch.use_runner(launch.metal if mx.metal.is_available() else host):
        yield host


def _as_array(x: mx.array | float) -> mx.array:
    """Numbers count as 0-d arrays; an array stays itself, for a copy would start elsewhere in memory."""
    return x if isinstance(x, mx.array) else mx.array(x)


def _check_sizes(kernel: Kernel, call: Launch) -> None:
    x, y, z = call.threadgroup
    if min(*call.grid, *call.threadgroup) < 1:
        raise ValueError(f"{kernel.name}: grid {call.grid}, threadgroup {call.threadgroup}")
    if x * y * z > MAX_THREADS:
        raise KernelError(
            f"{kernel.name}: a threadgroup of {x * y * z} threads, {MAX_THREADS} is the limit"
        )


def keep_written(kernel: Kernel, call: Launch, memory: Mapping[str, Memory]) -> None:
    """Put what a kernel wrote in place where MLX has those inputs; it ran on copies with room around them."""
    for name, x in zip(kernel.inputs, call.arrays, strict=True):
        if name in kernel.writes:
            held = np.asarray(x)  # no copy
            held[...] = memory[name].data.view(held.dtype).reshape(held.shape)


def _memory(
    made: Signature,
    call: Launch,
    outputs: list[np.ndarray],
    writes: Sequence[str],
    *,
    fill: int,
) -> list[Memory]:
    """The buffers in the order of the parameters. writes: the inputs that may be written in place"""
    inputs = [bits(x) for x in call.arrays]
    role = OUTPUT if call.init_value is None else INITIALISED
    out = []
    for b in made.buffers:
        if b.role == "output":
            out.append(Memory(outputs[b.source], role))
            continue
        x = inputs[b.source]
        described = {
            "input": x,
            "shape": np.array(x.shape, np.int32),
            "strides": np.array([s // x.itemsize for s in x.strides], np.int64),
            "ndim": np.array(x.ndim, np.int32),
        }[b.role]
        offset = _offset(described) if b.role == "input" else 0
        in_place = b.role == "input" and b.name in writes
        out.append(
            Memory(native.padded(described, offset, fill), INITIALISED if in_place else INPUT)
        )
    return out


def _offset(x: np.ndarray) -> int:
    """How far, modulo 16, a slice is from the start of its MLX array, which a GPU has on a page of its own."""
    return 0 if x.flags.owndata else (x.ctypes.data - _mlx_start()) % 16


@functools.cache
def _mlx_start() -> int:
    """Where MLX lets arrays start on this machine, modulo 16."""
    return int(np.asarray(mx.zeros(64)).ctypes.data % 16)


def bits(x: mx.array) -> np.ndarray:
    """The values in row order; bfloat16 as its bits."""
    return np.ascontiguousarray(np.asarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x))


def _fresh(
    shape: Sequence[int], dtype: mx.Dtype, init: float | None, fill: int = 0xFF
) -> np.ndarray:
    """An output as it is before the launch; without an initial value of bytes `fill`: 0xFF is no number."""
    if init is None:
        start = np.full(int(np.prod(shape)) * dtype.size, fill, np.uint8)
    else:
        start = bits(mx.full(shape, init, dtype)).reshape(-1).view(np.uint8)
    return native.padded(start, fill=fill).view(_numpy(dtype)).reshape(shape)


@functools.cache
def _numpy(dtype: mx.Dtype) -> np.dtype:
    return np.asarray(mx.zeros(0, mx.uint16 if dtype == mx.bfloat16 else dtype)).dtype


def _array(x: np.ndarray, dtype: mx.Dtype) -> mx.array:
    out = mx.array(x)
    return out.view(dtype) if out.dtype != dtype else out
