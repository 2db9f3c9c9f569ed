"""The kernel that mx.fast.metal_kernel makes of a body: parameters, their order, and the text.

MLX decides by the arrays of a call: fewer than 8 elements are `constant`, 0-d arrays references; shapes,
strides and thread attributes become parameters if the body contains their names, be it in a comment.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_ferrum.launch import Kernel, Launch

CONSTANT_BELOW = 8  # elements
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

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
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
}
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}


@dataclass(frozen=True)
class Buffer:
    """A parameter that takes a buffer.

    type: with its address space and `*` or `&`
    source: index of the input or output that it is, or that it describes
    role: "input", "output", "shape", "strides" or "ndim"
    """

    name: str
    type: str
    role: str
    source: int


@dataclass(frozen=True)
class Signature:
    """A kernel for arrays of given types and ranks; equal signatures are one library.

    kernel: its name as it was made
    name: MLX's, which tells template arguments and types
    """

    kernel: str
    name: str
    header: str
    source: str
    template: tuple[tuple[str, str, str], ...]  # (kind, name, value)
    buffers: tuple[Buffer, ...]
    attributes: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """The template's arguments, `<float, 7>`, or nothing."""
        return f"<{', '.join(value for _, _, value in self.template)}>" if self.template else ""

    @property
    def template_line(self) -> str:
        """`template <typename T, int N>`, or nothing."""
        if not self.template:
            return ""
        return f"template <{', '.join(f'{kind} {name}' for kind, name, _ in self.template)}>\n"

    def text(self) -> str:
        """What MLX hands to Metal's compiler, letter for letter."""
        parameters = [f"  {b.type} {b.name} [[buffer({i})]]" for i, b in enumerate(self.buffers)]
        parameters += [f"  {ATTRIBUTES[a]} {a} [[{a}]]" for a in self.attributes]
        kernel = f"[[kernel]] void {self.name}(\n" + ",\n".join(parameters) + ") {\n"
        out = self.header + self.template_line + kernel + self.source + "\n}\n"
        if self.template:
            instance = self.name + self.arguments
            host = f'[[host_name("{self.name}")]] [[kernel]]'
            out += f"\ntemplate {host} decltype({instance}) {instance};\n"
        return out


def signature(kernel: Kernel, launch: Launch) -> Signature:
    """The kernel for this call.

    Raises ValueError as MLX does, if counts or types do not fit, and for a name that Metal's compiler refuses.
    """
    _check_counts(kernel, launch)
    template = tuple(_template(name, value) for name, value in launch.template.items())
    kinds = [_type(x.dtype) + _passing(x) for x in launch.arrays]
    kinds += [_type(dtype) for dtype in launch.output_dtypes]
    return Signature(
        kernel.name,
        _name(kernel, [value for _, _, value in template], kinds),
        _text(kernel),
        kernel.source,
        template,
        tuple(_buffers(kernel, launch)),
        tuple(a for a in ATTRIBUTES if a in kernel.source),
    )


@functools.cache
def _text(kernel: Kernel) -> str:
    return kernel.text()


def _name(kernel: Kernel, values: Sequence[str], kinds: Sequence[str]) -> str:
    """MLX's name, made of the template's arguments and the types of arrays.

    Raises ValueError unless it is an identifier; MLX replaces a minus sign only since 0.32.4.
    """
    arguments = ["_" + "_".join(values)] if values else []
    name = "_".join([f"custom_kernel_{kernel.name}", *arguments, *kinds])
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"{kernel.name}: its name in Metal, {name}, is not an identifier")
    return name


def _passing(x: mx.array) -> str:
    if x.ndim == 0:
        return "s"
    return "c" if x.size < CONSTANT_BELOW else ""


def _buffers(kernel: Kernel, launch: Launch) -> list[Buffer]:
    out = []
    for i, (name, x) in enumerate(zip(kernel.inputs, launch.arrays, strict=True)):
        space = "constant" if x.size < CONSTANT_BELOW else "device"
        mark = "&" if x.ndim == 0 else "*"
        out.append(Buffer(name, f"const {space} {_type(x.dtype)}{mark}", "input", i))
        described = {"shape": "int*", "strides": "int64_t*", "ndim": "int&"}
        for role, kind in described.items() if x.ndim else ():
            if f"{name}_{role}" in kernel.source:
                out.append(Buffer(f"{name}_{role}", f"const constant {kind}", role, i))
    for i, (name, dtype) in enumerate(zip(kernel.outputs, launch.output_dtypes, strict=True)):
        out.append(Buffer(name, f"device {_type(dtype)}*", "output", i))
    return out


def _template(name: str, value: Any) -> tuple[str, str, str]:
    if isinstance(value, bool):
        return "bool", name, str(int(value))
    if isinstance(value, int):
        return "int", name, str(value)
    if isinstance(value, mx.Dtype):
        return "typename", name, _type(value)
    raise ValueError(f"template argument {name} is an int, a bool or a dtype, found {value!r}")


def _type(dtype: mx.Dtype) -> str:
    if dtype not in TYPES:
        raise ValueError(f"the host has no arrays of {dtype}")
    return TYPES[dtype]


def _check_counts(kernel: Kernel, launch: Launch) -> None:
    counts: Mapping[str, tuple[Sequence[Any], int]] = {
        "inputs": (launch.arrays, len(kernel.inputs)),
        "output_shapes": (launch.output_shapes, len(kernel.outputs)),
        "output_dtypes": (launch.output_dtypes, len(kernel.outputs)),
    }
    for what, (found, expected) in counts.items():
        if len(found) != expected:
            raise ValueError(f"{kernel.name}: {expected} {what} expected, found {len(found)}")
    if not kernel.outputs:
        raise ValueError(f"{kernel.name}: a kernel has at least one output")
