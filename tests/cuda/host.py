"""A runner for mlx_ferrum.launch that executes the text of CUDA kernels on this CPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mlx.core as mx
import numpy as np
from msl import compiler, host, native
from msl.native import INITIALISED, INPUT, OUTPUT, Memory

from mlx_ferrum import launch
from mlx_ferrum.backends import cuda
from mlx_ferrum.kernels.cuda.source import ENTRY, TYPES, Key, key, scalars, source
from mlx_ferrum.launch import Kernel, Launch, Triple

HEADER = Path(__file__).with_name("host.h")
_INSTRUCTIONS = re.compile(
    r'#line 1 "kernels/ptx\.cuh"\n.*?(?=#line \d+ "kernels/prelude\.cuh"\n)', re.S
)
_SHARED = re.compile(r"__shared__ __align__\(16\) +(\w+) +(\w+) *\[(.*)\];")
_FLAGS = (
    *("-cc1", "-x", "c++", "-std=c++17", "-nostdsysteminc", "-nobuiltininc", "-w"),
    *("-O0", "-ffp-contract=off", *compiler._TARGET),  # they run for less time than they compile
)


class CudaHost:
    """Runs kernels, on blocks that are whole as CUDA's are."""

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        """Run one launch now. Raises SourceError, ValueError, and KernelError for what the runtime finds."""
        made = key(call)
        role = OUTPUT if call.init_value is None else INITIALISED
        outputs = [
            host._fresh(shape, dtype, call.init_value)
            for shape, dtype in zip(call.output_shapes, call.output_dtypes, strict=True)
        ]
        memory = [
            Memory(
                native.padded(host.bits(x)),
                INITIALISED if name in kernel.writes else INPUT,
            )
            for name, x in zip(kernel.inputs, call.arrays, strict=True)
        ]
        memory += [Memory(output, role) for output in outputs]
        numbers = scalars(kernel, call, made.partial)
        memory += [Memory(native.padded(np.array([n], np.int32)), INPUT) for n in numbers]
        block = _each(min, call.grid, call.threadgroup)
        grid = _each(lambda n, t: -(-n // t) * t, call.grid, block)
        found = native.run(
            library(kernel, made),
            memory,
            grid=grid,
            group=block,
            seed=0,
            checked=False,
            threads=host._OS_THREADS,
        )
        if found:
            raise host.KernelError("; ".join(f"{raw.kind}: {raw.detail}" for raw in found))
        host.keep_written(kernel, call, dict(zip(kernel.inputs, memory, strict=False)))
        return [host._array(o, d) for o, d in zip(outputs, call.output_dtypes, strict=True)]


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Within, the cuda backend works, and launches run on this CPU; where there is an NVIDIA GPU, on that."""
    if mx.cuda.is_available():
        with launch.use_runner(launch.cuda):
            yield
        return
    with launch.use_runner(CudaHost()), mock.patch.object(cuda, "check_gpu"):
        yield


def _each(function: Callable[[int, int], int], a: Triple, b: Triple) -> Triple:
    x, y, z = map(function, a, b)
    return x, y, z


@functools.cache
def library(kernel: Kernel, made: Key) -> Path:
    """The shared library of a kernel. Raises SourceError for text that does not compile."""
    text = hosted(kernel, made)

    def build(folder: Path, built: Path) -> None:
        written, objects = folder / "kernel.cpp", folder / "kernel.o"
        written.write_text(text)
        compiler._zig(
            *_FLAGS, "-include", str(HEADER), str(written), "-emit-obj", "-o", str(objects)
        )
        compiler._zig("ld.lld", "-shared", str(objects), str(compiler.runtime()), "-o", str(built))

    return compiler._kept(f"{text}\n{HEADER.read_text()}\n{_FLAGS}", ".so", build)


def hosted(kernel: Kernel, made: Key) -> str:
    """The text of a kernel as the host takes it, and a function that the runtime calls."""
    text, found = _INSTRUCTIONS.subn("", source(kernel, made))
    if found > 1:
        raise AssertionError("the instructions are more than once in the text")
    text = _SHARED.sub(_shared, text)
    text = text.replace(f"{ENTRY}(", f"{ENTRY}(const msl_position& position, ", 1)
    kinds = [f"{TYPES[dtype]}*" for dtype in made.dtypes]
    count = len(re.findall(r"\bint \w+", text[text.index(f"{ENTRY}(") :].split(")", 1)[0]))
    arguments = ["*position"]
    arguments += [
        f"({kind if kind == 'bool*' else 'ferrum::' + kind})pointers[{i}]"
        for i, kind in enumerate(kinds)
    ]
    arguments += [f"*(int*)pointers[{len(kinds) + i}]" for i in range(count)]
    return (
        f"{text}#pragma clang attribute pop\n"
        'extern "C" void msl_entry(void** pointers, const msl_position* position) {\n'
        f"    ferrum::{ENTRY}({', '.join(arguments)});\n}}\n"
    ).replace("ferrum::float*", "float*")


def _shared(found: re.Match[str]) -> str:
    """A shared variable, as a reference into the block's memory."""
    kind, name, length = found.groups()
    array = f"{kind}[{length}]"
    place = f"msl_threadgroup({found.start()}, sizeof({array}), 16)"
    return f"{kind} (&{name})[{length}] = *({kind} (*)[{length}]){place};"
