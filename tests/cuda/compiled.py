"""Kernels compiled by NVRTC. The code of a text is kept beside the hosts' libraries: the same text compiles once."""

from __future__ import annotations

from pathlib import Path

from msl import compiler

from mlx_ferrum.kernels.cuda import nvrtc
from mlx_ferrum.kernels.cuda.source import Key, source
from mlx_ferrum.launch import Kernel


def machine_code(kernel: Kernel, made: Key, architecture: str) -> bytes:
    """For an architecture, as "sm_90". Raises CompileError."""
    text = source(kernel, made)

    def build(_folder: Path, built: Path) -> None:
        built.write_bytes(nvrtc.compile_text(text, architecture, kernel.name))

    stated = f"{text}\n{architecture} {nvrtc.version()} {nvrtc.options_here()}"
    return compiler._kept(stated, ".cubin", build).read_bytes()
