"""The text of a kernel for NVRTC: its Metal text, and the signature that MLX's launcher of compiled kernels fits.

That launcher hands over pointers to the inputs and outputs, then numbers: the shapes that the body reads, and where
a grid is no multiple of its blocks, the grid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_ferrum.launch import Kernel, Launch

TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "half",
    mx.bfloat16: "bfloat",
    mx.float32: "float",
}
# Metal's attributes of a thread that bodies name, by what CUDA calls them; blocks are lines of threads.
ATTRIBUTES = {
    "threadgroup_position_in_grid": ("uint3", "{blockIdx.x, blockIdx.y, blockIdx.z}"),
    "thread_position_in_grid": (
        "uint3",
        "{blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, "
        "blockIdx.z * blockDim.z + threadIdx.z}",
    ),
    "thread_position_in_threadgroup": ("uint3", "{threadIdx.x, threadIdx.y, threadIdx.z}"),
    "threads_per_threadgroup": ("uint3", "{blockDim.x, blockDim.y, blockDim.z}"),
    "threadgroups_per_grid": ("uint3", "{gridDim.x, gridDim.y, gridDim.z}"),
    "thread_index_in_threadgroup": ("uint", "threadIdx.x"),
    "thread_index_in_simdgroup": ("uint", "threadIdx.x % 32"),
    "simdgroup_index_in_threadgroup": ("uint", "threadIdx.x / 32"),
    "simdgroups_per_threadgroup": ("uint", "(blockDim.x + 31) / 32"),
}
ENTRY = "ferrum_kernel"
_SHARED = re.compile(r"\bthreadgroup(?= +\w+ +\w+ *\[)")


class Key(NamedTuple):
    """What the text of a kernel depends on besides the kernel."""

    template: tuple[tuple[str, Any], ...]
    dtypes: tuple[mx.Dtype, ...]  # of inputs, then outputs
    ranks: tuple[int, ...]
    block: tuple[int, int, int]
    partial: bool


def key(launch: Launch) -> Key:
    """The text's key. Raises ValueError for threadgroups that are no lines of threads."""
    if launch.threadgroup[1:] != (1, 1):
        raise ValueError(f"a threadgroup of {launch.threadgroup}, expected a line of threads")
    return Key(
        tuple(launch.template.items()),
        (*(x.dtype for x in launch.arrays), *launch.output_dtypes),
        tuple(x.ndim for x in launch.arrays),
        launch.threadgroup,
        launch.grid[0] % launch.threadgroup[0] != 0,
    )


def scalars(kernel: Kernel, launch: Launch, partial: bool) -> list[int]:
    """The numbers after the pointers."""
    found = [n for i in described(kernel) for n in launch.arrays[i].shape]
    return [*found, launch.grid[0]] if partial else found


def described(kernel: Kernel) -> Sequence[int]:
    """The inputs whose shapes the body reads."""
    return [i for i, name in enumerate(kernel.inputs) if f"{name}_shape" in kernel.source]


def source(kernel: Kernel, made: Key) -> str:
    """The text; it has one kernel, ENTRY.

    Raises ValueError for a template argument or an array of a type that there is none for.
    """
    names = [*kernel.inputs, *kernel.outputs]
    parameters = [
        f"{'const ' if i < len(kernel.inputs) else ''}{_type(dtype)}* {name}"
        for i, (name, dtype) in enumerate(zip(names, made.dtypes, strict=True))
    ]
    shapes = [(kernel.inputs[i], made.ranks[i]) for i in described(kernel)]
    parameters += [f"int {name}_shape{n}" for name, rank in shapes for n in range(rank)]
    lines = [_constant(name, value) for name, value in made.template]
    lines += [
        f"const int {name}_shape[] = {{{', '.join(f'{name}_shape{n}' for n in range(rank))}}};"
        for name, rank in shapes
    ]
    lines += [
        f"const {kind} {name} = {value};"
        for name, (kind, value) in ATTRIBUTES.items()
        if name in kernel.source
    ]
    if made.partial:
        parameters.append("int threads_in_grid")
        lines.append("if (blockIdx.x * blockDim.x + threadIdx.x >= threads_in_grid) return;")
    body = _SHARED.sub("__shared__ __align__(16)", kernel.source)
    threads = made.block[0]
    prologue = "\n".join(lines)
    return (
        f"namespace ferrum {{\n{kernel.text('cuda')}\n"
        f'extern "C" __global__ void __launch_bounds__({threads}) {ENTRY}({", ".join(parameters)}) {{\n'
        f'{prologue}\n#line 1 "{kernel.name} body"\n{body}\n}}\n}}\n'
    )


def _constant(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()};"
    if isinstance(value, int):
        return f"constexpr int {name} = {value};"
    if isinstance(value, mx.Dtype):
        return f"using {name} = {_type(value)};"
    raise ValueError(f"template argument {name} is an int, a bool or a dtype, found {value!r}")


def _type(dtype: mx.Dtype) -> str:
    if dtype not in TYPES:
        raise ValueError(f"kernels take no arrays of {dtype}")
    return TYPES[dtype]
