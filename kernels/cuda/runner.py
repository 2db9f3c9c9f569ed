"""Runs launches on an NVIDIA GPU: compiles each text once, keeps the machine code on disk, and has MLX launch it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import mlx.core as mx

from mlx_ferrum.launch import Kernel, Launch

from ..cpu.cache import build_folder, cache_folder, clean
from . import nvrtc
from .source import ENTRY, Key, key, scalars, source


def run(kernel: Kernel, launch: Launch) -> list[mx.array]:
    """A runner for mlx_ferrum.launch; lazy.

    Raises ValueError for what a kernel cannot take, CompileError for text that cannot be compiled.
    """
    made = key(launch)
    outputs: list[mx.array] = mx.fast.precompiled_cuda_kernel(
        name=ENTRY,
        compiled_source=machine_code(kernel, made),
        inputs=launch.arrays,
        output_shapes=[tuple(shape) for shape in launch.output_shapes],
        output_dtypes=launch.output_dtypes,
        scalars=scalars(kernel, launch, made.partial),
        grid=launch.grid,
        threadgroup=launch.threadgroup,
        init_value=launch.init_value,
        ensure_row_contiguous=True,
    )
    return outputs


@functools.cache
def architecture() -> str:
    """The GPU's, as "sm_90"."""
    return str(mx.device_info(mx.gpu)["architecture"])


@functools.cache
def machine_code(kernel: Kernel, made: Key) -> bytes:
    """Of a kernel for this GPU, compiled at most once by all processes of a user. Raises CompileError."""
    text, target = source(kernel, made), architecture()
    stated = "\n".join([target, str(nvrtc.version()), *nvrtc.options_here(), text])
    name = hashlib.sha256(stated.encode()).hexdigest()[:32]
    path = cache_folder() / f"cuda-{name}.cubin"
    try:
        cubin = path.read_bytes()
        path.touch()  # what is in use is not old
        return cubin
    except FileNotFoundError:
        pass
    cubin = nvrtc.compile_text(text, target, kernel.name)
    _write(path, cubin)
    return cubin


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    with build_folder(path.parent) as folder:
        partial = folder / path.name
        partial.write_bytes(data)
        partial.replace(path)
    clean(path.parent)
