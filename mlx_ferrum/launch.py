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
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from . import notice
from .kernel_text import Line, bare, needed, with_places
from .kernels import __path__ as _folders

FOLDER = Path(next(iter(_folders)))
_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"\s*$')

LEAST_WRITTEN = 8  # numbers; MLX hands smaller arrays over as constants

Triple = tuple[int, int, int]


@dataclass(slots=True)  # frozen, it would take four times as long to make
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
_TENSOR = ".tensor.metal"


@dataclass(frozen=True)
class Header:
    """The text before a kernel's body.

    files: of kernels/, with what they include; for NAME.metal, NAME.cuh is taken on NVIDIA GPUs, and NAME.flushed.metal
        for the target "flushed", where there is one
    names: text after them
    tensor: whether NAME.tensor.metal is taken, where there is one, which needs Metal 4
    """

    files: tuple[str, ...]
    names: str = ""
    tensor: bool = False

    def text(self, target: Target) -> str:
        """Raises ValueError if a file is not there."""
        return expand(*self.files, target=target, tensor=self.tensor) + self.names


@dataclass(frozen=True)
class Kernel:
    """A kernel of one library.

    name: unique; MLX caches the compiled library under it
    source: the body; names its inputs, outputs and thread attributes as in mx.fast.metal_kernel
    header: the text before it
    writes: the inputs that the body writes in place, through a cast that takes const away. MLX does not know: a launch
        that has to come after this one takes one of its outputs.
    """

    name: str
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    header: str | Header = field(default="", repr=False)
    writes: tuple[str, ...] = ()

    def text(self, target: Target = "metal") -> str:
        """The text before the body: all of it for CUDA, what the body needs for Metal.

        Raises ValueError if a file of it is not there.
        """
        if isinstance(self.header, str):
            return self.header
        return self.header.text(target) if target == "cuda" else with_places(self._lines(target))

    @functools.cached_property
    def bare_text(self) -> str:
        """The text before the body without line directives, which MLX is handed at each launch, for most GPUs."""
        return self.header if isinstance(self.header, str) else bare(self._lines("metal"))

    @functools.cached_property
    def text_here(self) -> str:
        """The same for this GPU. Kernels without files, as the check itself, have one text."""
        if isinstance(self.header, str) or keeps_half_subnormals():
            return self.bare_text
        return bare(self._lines("flushed"))

    def _lines(self, target: Target) -> list[Line]:
        assert isinstance(self.header, Header)
        return needed(self.header.text(target), self.source)

    def __call__(self, arrays: Sequence[mx.array], **launch: Any) -> list[mx.array]:
        """Launch it once: one array an output. Other arguments and errors: those of `prepare` and of its call."""
        return self.prepare(**launch)(arrays)

    def prepare(
        self,
        *,
        grid: Triple,
        threadgroup: Triple,
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        template: Mapping[str, Any] | None = None,
        init_value: float | None = None,
    ) -> Call:
        """All of a launch but the arrays, to be kept for arrays of the same shapes. See `Launch` for the arguments.

        Raises ValueError for a negative template integer.
        """
        self._check_template(template or {})
        launch = template or {}, grid, threadgroup, output_shapes, output_dtypes, init_value
        return Call(self, all(0 in shape for shape in output_shapes), *launch)

    @functools.cached_property
    def metal(self) -> Callable[..., Any]:
        """MLX's function for it."""
        built: Any = mx.fast.metal_kernel(
            name=self.name,
            input_names=list(self.inputs),
            output_names=list(self.outputs),
            source=self.source,
            header=self.text_here,
        )
        return built

    def _check_template(self, template: Mapping[str, Any]) -> None:
        """MLX puts template arguments into the kernel's name, where some versions leave the minus sign."""
        for name, value in template.items():
            if isinstance(value, int) and value < 0:
                raise ValueError(
                    f"{self.name}: template argument {name} is {value}, expected 0 or more"
                )

    def check_written(self, arrays: Sequence[mx.array]) -> None:
        """Raises ValueError for arrays that MLX would copy, or hand over as constants: writes would be lost."""
        for name, x in zip(self.inputs, arrays, strict=True):
            if name not in self.writes:
                continue
            if x.size < LEAST_WRITTEN or not _is_contiguous(x):
                raise ValueError(
                    f"{self.name}: {name} of shape {x.shape} is written in place, expected a contiguous array of "
                    f"at least {LEAST_WRITTEN} numbers"
                )


def _is_contiguous(x: mx.array) -> bool:
    """Not looked at with CUDA, where MLX moves an array out of the GPU's own memory when the host looks at it."""
    buffer: Any = x
    return mx.cuda.is_available() or memoryview(buffer).c_contiguous


class Call(NamedTuple):
    """A launch without its arrays, whose template is checked: a call of it gives an array an output.

    is_empty: there are no elements to compute, so nothing runs
    """

    kernel: Kernel
    is_empty: bool
    template: Mapping[str, Any]
    grid: Triple
    threadgroup: Triple
    output_shapes: Sequence[Sequence[int]]
    output_dtypes: Sequence[mx.Dtype]
    init_value: float | None

    def __call__(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        if self.is_empty:
            return [mx.zeros(*x) for x in zip(self.output_shapes, self.output_dtypes, strict=True)]
        if self.kernel.writes:
            self.kernel.check_written(arrays)
        return _runner(self.kernel, Launch(arrays, *self[2:]))


# Of a kernel's calls and of constants that are kept: shapes of prompts differ, those of a token's step do not.
KEPT = 1024
Runner = Callable[[Kernel, Launch], list[mx.array]]


def metal(kernel: Kernel, launch: Launch) -> list[mx.array]:
    """The default runner: the GPU, through MLX; lazy. Raises RuntimeError where there is no Metal."""
    outputs: list[mx.array] = kernel.metal(
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


@functools.lru_cache(KEPT)
def constant(*values: float) -> mx.array:
    """(n,) float32, made once."""
    return mx.array(values, mx.float32)


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
def expand(*files: str, target: Target = "metal", tensor: bool = False) -> str:
    """The text of files of kernels/ one after another, with what they include, each file once.

    See `Header` for tensor. Line directives let compilers name the files. Raises ValueError if a file is not there.
    """
    suffixes = [_TENSOR] * tensor + ([_SUFFIXES[target]] if target in _SUFFIXES else [])
    seen: set[Path] = set()
    return "".join(_expanded(FOLDER / name, seen, suffixes) for name in files)


def _expanded(path: Path, seen: set[Path], suffixes: Sequence[str]) -> str:
    """suffixes: of files that replace others, if they are there; the first one counts"""
    path = path.resolve()
    path = next(filter(Path.is_file, map(path.with_suffix, suffixes)), path)
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
            out.append(_expanded(path.parent / included[1], seen, suffixes))
            out.append(f'#line {number + 1} "{name}"\n')
        elif line.strip() != "#pragma once":
            out.append(line)
        else:
            out.append("\n")
    return "".join(out)


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
