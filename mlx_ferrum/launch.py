"""Kernels: Metal text, and who runs it.

A kernel is a header of functions, from files of kernels/, and a short body that calls them; MLX writes
the signature around the body. Metal runs it through mx.fast.metal_kernel; another runner can take its
place for as long as a `with use_runner(...)` lasts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from . import notice
from .kernels import __path__ as _folders

FOLDER = Path(next(iter(_folders)))
_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"\s*$')

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One call of a kernel.

    arrays: the inputs, in the order of their names
    template: name -> int that is not negative, bool or mx.Dtype
    grid: threads, not threadgroups, along each axis
    threadgroup: threads of one threadgroup along each axis
    init_value: what outputs hold before the kernel writes; None: anything
    """

    arrays: Sequence[mx.array]
    template: Mapping[str, Any]
    grid: Triple
    threadgroup: Triple
    output_shapes: Sequence[Sequence[int]]
    output_dtypes: Sequence[mx.Dtype]
    init_value: float | None


Target = Literal["metal", "flushed", "cuda"]  # flushed: Metal where subnormal halves count as 0
_SUFFIXES: Mapping[Target, str] = {"flushed": ".flushed.metal", "cuda": ".cuh"}


@dataclass(frozen=True)
class Header:
    """The text before a kernel's body.

    files: of kernels/, with what they include; for NAME.metal, NAME.cuh is taken on NVIDIA GPUs, and NAME.flushed.metal
        for the target "flushed", where there is one
    names: text after them
    """

    files: tuple[str, ...]
    names: str = ""

    def text(self, target: Target) -> str:
        """Raises ValueError if a file is not there."""
        return expand(*self.files, target=target) + self.names


@dataclass(frozen=True)
class Kernel:
    """A kernel of one library.

    name: unique; MLX caches the compiled library under it
    source: the body; names its inputs, outputs and thread attributes as in mx.fast.metal_kernel
    header: the text before it
    """

    name: str
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    header: str | Header = field(default="", repr=False)

    def text(self, target: Target = "metal") -> str:
        """The text before the body. Raises ValueError if a file of it is not there."""
        return self.header if isinstance(self.header, str) else self.header.text(target)

    def __call__(
        self,
        arrays: Sequence[mx.array],
        *,
        grid: Triple,
        threadgroup: Triple,
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        template: Mapping[str, Any] | None = None,
        init_value: float | None = None,
    ) -> list[mx.array]:
        """Launch it: one array an output. See `Launch` for the arguments. Without elements to compute nothing runs.

        Raises ValueError for a negative template integer.
        """
        if all(0 in shape for shape in output_shapes):
            return [mx.zeros(s, d) for s, d in zip(output_shapes, output_dtypes, strict=True)]
        self._check_template(template or {})
        return _runner(
            self,
            Launch(
                arrays,
                template or {},
                grid,
                threadgroup,
                output_shapes,
                output_dtypes,
                init_value,
            ),
        )

    def _check_template(self, template: Mapping[str, Any]) -> None:
        """MLX puts template arguments into the kernel's name, where some versions leave the minus sign."""
        for name, value in template.items():
            if isinstance(value, int) and value < 0:
                raise ValueError(
                    f"{self.name}: template argument {name} is {value}, expected 0 or more"
                )


Runner = Callable[[Kernel, Launch], list[mx.array]]


def metal(kernel: Kernel, launch: Launch) -> list[mx.array]:
    """The default runner: the GPU, through MLX; lazy. Raises RuntimeError where there is no Metal."""
    outputs: list[mx.array] = _built(kernel)(
        inputs=list(launch.arrays),
        template=list(launch.template.items()),
        grid=launch.grid,
        threadgroup=launch.threadgroup,
        output_shapes=launch.output_shapes,
        output_dtypes=launch.output_dtypes,
        init_value=launch.init_value,
    )
    return outputs


def cuda(kernel: Kernel, launch: Launch) -> list[mx.array]:
    """The runner on NVIDIA GPUs; lazy."""
    from .kernels.cuda import runner

    return runner.run(kernel, launch)


_runner: Runner = cuda if mx.cuda.is_available() else metal


def can_run() -> bool:
    """Whether launches have something to run on: a GPU, or another runner."""
    return _runner not in (metal, cuda) or mx.metal.is_available() or mx.cuda.is_available()


@contextmanager
def use_runner(runner: Runner) -> Iterator[None]:
    """Let `runner` take all launches within."""
    global _runner
    before, _runner = _runner, runner
    try:
        yield
    finally:
        _runner = before


@functools.cache
def expand(*files: str, target: Target = "metal") -> str:
    """The text of files of kernels/ one after another, with what they include, each file once.

    Line directives let compilers name the files. Raises ValueError if a file is not there.
    """
    seen: set[Path] = set()
    return "".join(_expanded(FOLDER / name, seen, target) for name in files)


def _expanded(path: Path, seen: set[Path], target: Target) -> str:
    path = path.resolve()
    if target in _SUFFIXES and path.with_suffix(_SUFFIXES[target]).is_file():
        path = path.with_suffix(_SUFFIXES[target])
    if path in seen:
        return ""
    seen.add(path)
    if not path.is_file() or not path.is_relative_to(FOLDER.resolve()):
        raise ValueError(f"no kernel text {path}")
    name = f"kernels/{path.relative_to(FOLDER.resolve()).as_posix()}"
    out = [f'#line 1 "{name}"\n']
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        included = _INCLUDE.match(line)
        if included:
            out.append(_expanded(path.parent / included[1], seen, target))
            out.append(f'#line {number + 1} "{name}"\n')
        elif line.strip() != "#pragma once":
            out.append(line)
        else:
            out.append("\n")
    return "".join(out)


@functools.cache
def _built(kernel: Kernel) -> Callable[..., Any]:
    built: Any = mx.fast.metal_kernel(
        name=kernel.name,
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        source=kernel.source,
        header=text_for_metal(kernel),
    )
    return built


def text_for_metal(kernel: Kernel) -> str:
    """The text before the body for this GPU. Kernels without files, as the check itself, have one text."""
    is_usual = isinstance(kernel.header, str) or keeps_half_subnormals()
    return kernel.text("metal" if is_usual else "flushed")


@functools.cache
def keeps_half_subnormals() -> bool:
    """Whether the GPU computes with subnormal halves. The first kernel asks it; a line says so if it does not."""
    from .kernels import subnormals

    kept = subnormals.are_kept()
    if not kept:
        notice.warn(
            "this GPU takes subnormal float16 numbers for 0; kernels convert scales by integer arithmetic, "
            "which is slower"
        )
    return kept
