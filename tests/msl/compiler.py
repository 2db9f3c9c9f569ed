"""Kernels as shared libraries: preprocess, translate, compile, link; each once, cached by all that it depends on."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import ziglang

from mlx_ferrum.kernels.cpu.build import _cache_folder as cache_folder

from . import lint, translate
from .signature import Signature
from .tokens import SourceError, tokenize

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
RUNTIME = HERE / "runtime"
ZIG = Path(ziglang.__file__).parent / "zig"
ARM = platform.machine() in ("aarch64", "arm64")

# Names that OpenCL has already, for something else
_RENAMED = """atomic_bool atomic_float atomic_int atomic_uint atomic_ulong
    memory_order memory_order_relaxed memory_order_seq_cst""".split()
_LANGUAGE = [
    *("-cc1", "-x", "clcpp", "-cl-std=clc++2021", "-nostdsysteminc", "-nobuiltininc"),
    # mutable globals are refused, as by Metal; half is a type to compute with; no name of OpenCL's library
    "-cl-ext=+cl_khr_fp16,-__opencl_c_program_scope_global_variables,"
    "-__opencl_c_device_enqueue,-__opencl_c_pipes",
    *("-cl-single-precision-constant", "-D__METAL__=1", "-D__METAL_VERSION__=310"),
]
_MACHINE = [
    *("-triple", "aarch64-unknown-linux-gnu" if ARM else "x86_64-unknown-linux-gnu"),
    *(("-target-feature", "+fullfp16") if ARM else ("-target-cpu", "x86-64-v3")),
    *("-mrelocation-model", "pic", "-pic-level", "2"),
]
_SPACES = [
    *("-Ddevice=__global", "-Dthreadgroup=__local", "-Dthread=__private", "-Dconstant=__constant"),
    *(f"-D{name}=msl_{name}" for name in _RENAMED),
]
_CODE = [
    # every operation rounds to its own type
    *("-ffp-contract=off", "-ffloat16-excess-precision=none", "-fbfloat16-excess-precision=none"),
    *("-debug-info-kind=line-tables-only", "-dwarf-version=4"),
    # remarks, for _check
    *("-Wno-everything", "-Wimplicit-float-conversion", "-Wimplicit-int-float-conversion"),
    "-Rpass-missed=inline",
    # code in the order of the text: of two waiting places the runtime takes the first
    *("-mllvm", "-disable-block-placement"),
]
_REMARK = re.compile(
    r"(?m)^(.+:\d+):\d+: (?:warning: .* to '(bfloat)'.*|remark: .*recursive call.*)$"
)
PLAIN = ["-O2"]
CHECKED = [
    *("-O1", "-DMSL_CHECKED"),
    # a call before every access, at its full size; the runtime does what a sanitizer's would
    *("-fsanitize=kernel-address", "-mllvm", "-asan-instrumentation-with-call-threshold=0"),
    *("-mllvm", "-asan-stack=0", "-mllvm", "-asan-globals=0", "-mllvm", "-asan-opt=0"),
    *("-mllvm", "-asan-instrument-atomics=0", "-mllvm", "-asan-kernel-mem-intrinsic-prefix=1"),
    "-fsanitize=alignment,array-bounds,integer-divide-by-zero",
    "-fsanitize-recover=alignment,array-bounds,integer-divide-by-zero",
]


def library(signature: Signature, *, checked: bool) -> Path:
    """The shared library of a kernel; its functions are `translate.ENTRY` and what that calls.

    Raises SourceError, with file and line, for text that does not compile.
    """
    mode = CHECKED if checked else PLAIN
    path = _path(f"{signature.text()}\n{mode}", ".so")
    if not path.exists():
        text = translated(signature)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            written, built, linked = (Path(folder) / f"kernel.{s}" for s in ("cl", "o", "so"))
            written.write_text(text)
            header = ["-include-pch", str(_header(checked=checked))]
            _check(_zig(*_flags(mode), *header, "-emit-obj", str(written), "-o", str(built))[1])
            _zig("ld.lld", "-shared", str(built), str(runtime()), "-o", str(linked))
            linked.replace(path)
    return path


def translated(signature: Signature) -> str:
    """The kernel as clang gets it."""
    text, _ = _zig(*_LANGUAGE, "-E", "-", text=_without_includes(translate.source(signature)))
    tokens = tokenize(text, "generated")
    lint.check(tokens)
    return translate.translate(tokens, signature)


def _check(remarks: str) -> None:
    """Raises SourceError for what clang takes, and remarks on, and Apple's compiler refuses."""
    found = [
        f"{place}: {'an implicit conversion to bfloat' if bfloat else 'recursion'}"
        for place, bfloat in _REMARK.findall(remarks)
        if not place.startswith(str(INCLUDE))
    ]
    if found:
        raise SourceError("\n".join(dict.fromkeys(found)))


@functools.cache
def runtime() -> Path:
    """The runtime's library, built if need be. Raises OSError if there is no C++ compiler."""
    path = _path("runtime", ".so")
    if not path.exists():
        compiler = shutil.which("g++") or shutil.which("c++")
        if not compiler:
            raise OSError("no C++ compiler to build the kernels' runtime with")
        flags = "-std=c++17 -O2 -shared -fPIC -ftls-model=initial-exec -w".split()
        files = [str(f) for f in sorted(RUNTIME.glob("*.cpp"))]
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            built = Path(folder) / path.name
            libraries = ["-Wl,--no-as-needed", "-lm", "-ldl", "-lpthread"]
            _run(compiler, *flags, *files, "-o", str(built), *libraries)
            built.replace(path)
    return path


@functools.cache
def _header(*, checked: bool) -> Path:
    """metal.h, precompiled."""
    mode = CHECKED if checked else PLAIN
    path = _path(f"header\n{mode}", ".pch")
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            built = Path(folder) / path.name
            _zig(*_flags(mode), "-emit-pch", str(INCLUDE / "metal.h"), "-o", str(built))
            built.replace(path)
    return path


def _flags(mode: list[str]) -> list[str]:
    return [*_LANGUAGE, *_MACHINE, *_SPACES, *_CODE, *mode]


def _without_includes(text: str) -> str:
    """Without Metal's own headers, of which the precompiled one has everything."""
    return re.sub(r"(?m)^[ \t]*#[ \t]*include[ \t]*<metal_\w+>", "", text)


@functools.cache
def _path(content: str, suffix: str) -> Path:
    """Where a product is kept: named after its content and the tools that make it."""
    digest = hashlib.sha256(f"{_tools()}\n{content}".encode())
    return cache_folder() / f"msl-{digest.hexdigest()[:32]}{suffix}"


@functools.cache
def _tools() -> str:
    digest = hashlib.sha256(f"{ZIG} {ZIG.stat().st_size} {_LANGUAGE} {_MACHINE} {_CODE}".encode())
    files = [*HERE.glob("*.py"), *INCLUDE.glob("*"), *RUNTIME.glob("*")]
    for path in sorted(f for f in files if f.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _zig(*arguments: str, text: str | None = None) -> tuple[str, str]:
    return _run(str(ZIG), *arguments, text=text)


def _run(*command: str, text: str | None = None) -> tuple[str, str]:
    """What the command writes to its two outputs."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceError(done.stderr.strip() or f"{command[0]} failed with {done.returncode}")
    return done.stdout, done.stderr
