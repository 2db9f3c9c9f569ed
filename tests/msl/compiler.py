"""Kernels as shared libraries: preprocess, translate, compile, link; each once, cached by all that it depends on."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlx_ferrum.kernels.cpu.build import cache_folder

from . import limits, lint, translate
from .signature import Signature
from .tensors import HEADERS
from .tokens import SourceError, tokenize

HERE = Path(__file__).parent
RUNTIME = HERE / "runtime"
ARM = platform.machine() in ("aarch64", "arm64")

# Names that OpenCL has already, for something else
_RENAMED = """atomic_bool atomic_float atomic_int atomic_uint atomic_ulong
    memory_order memory_order_relaxed memory_order_seq_cst""".split()
_LANGUAGE = (
    *("-cc1", "-x", "clcpp", "-cl-std=clc++2021", "-nostdsysteminc", "-nobuiltininc"),
    # mutable globals are refused, as by Metal; half is a type to compute with; no name of OpenCL's library
    "-fno-convergent-functions",
    "-cl-ext=+cl_khr_fp16,-__opencl_c_program_scope_global_variables,"
    "-__opencl_c_device_enqueue,-__opencl_c_pipes",
    *("-cl-single-precision-constant", "-D__METAL__=1", "-D__METAL_VERSION__=310"),
)
_TARGET = (
    *("-triple", "aarch64-unknown-linux-gnu" if ARM else "x86_64-unknown-linux-gnu"),
    *(("-target-feature", "+fullfp16") if ARM else ("-target-cpu", "x86-64-v3")),
    *("-mrelocation-model", "pic", "-pic-level", "2"),
)
_CODE = (
    *_TARGET,
    *("-Ddevice=__global", "-Dthreadgroup=__local", "-Dthread=__private", "-Dconstant=__constant"),
    *(f"-D{name}=msl_{name}" for name in _RENAMED),
    # every operation rounds to its own type
    *("-ffp-contract=off", "-ffloat16-excess-precision=none", "-fbfloat16-excess-precision=none"),
    # a variable that is too large meets the end of its stack, and not the next one
    "-fstack-clash-protection",
    *("-debug-info-kind=line-tables-only", "-dwarf-version=4"),
    # lines are told by addresses; where variables are is not asked, and takes a tenth of the time
    *("-mllvm", "-experimental-debug-variable-locations=false"),
    # remarks, for _check
    *("-Wno-everything", "-Wimplicit-float-conversion", "-Wimplicit-int-float-conversion"),
    *("-Wpre-c++17-compat", "-Wc++11-narrowing", "-Wno-error=c++11-narrowing"),
    "-Rpass-missed=inline",
)
_DIAGNOSTIC = re.compile(r"\S.*:\d+:\d+: (fatal error|error|warning|remark|note): ")
_KEPT_SECONDS = 7 * 24 * 3600
_UNDEFINED = (
    "alignment,array-bounds,integer-divide-by-zero,float-cast-overflow,signed-integer-overflow"
)


class Mode(NamedTuple):
    """A way to compile: what clang is told beside the rest."""

    name: str
    flags: tuple[str, ...]


PLAIN = Mode("plain", ("-O2", "-ftrivial-auto-var-init=pattern"))
CHECKED = Mode(
    "checked",
    (
        *("-O1", "-DMSL_CHECKED", "-ftrivial-auto-var-init=zero"),
        # a call before every access, at its full size; the runtime does what a sanitizer's would
        *("-fsanitize=kernel-address", "-mllvm", "-asan-instrumentation-with-call-threshold=0"),
        *("-mllvm", "-asan-stack=0", "-mllvm", "-asan-globals=0", "-mllvm", "-asan-opt=0"),
        *("-mllvm", "-asan-instrument-atomics=0", "-mllvm", "-asan-kernel-mem-intrinsic-prefix=1"),
        *(f"-fsanitize={_UNDEFINED}", f"-fsanitize-recover={_UNDEFINED}"),
    ),
)
# For LLVM's text, to be counted: address spaces are told apart, nothing is vectorised for this processor.
COUNTED = Mode(
    "counted",
    (
        *("-O2", "-ffake-address-space-map", "-mllvm", "-disable-vector-combine"),
        "-ffp-contract=on",  # as Apple's compiler
    ),
)

# What clang remarks on, and what it is called here
_REMARKS = {
    re.compile(
        r"(?m)^(.+:\d+):\d+: warning: .* to '(?:bfloat)'"
    ): "an implicit conversion to bfloat",
    re.compile(r"(?m)^(.+:\d+):\d+: remark: .*recursive call"): "recursion",
    re.compile(
        r"(?m)^(.+:\d+):\d+: .*-Wpre-c\+\+17-compat\]$"
    ): "C++17, macOS 14 and 15 have C++14",
    re.compile(r"(?m)^(.+:\d+):\d+: .*-Wc\+\+11-narrowing\]$"): "narrowing in braces",
}


@functools.cache
def library(signature: Signature, mode: Mode) -> Path:
    """The shared library of a kernel; its functions are `translate.ENTRY` and what that calls.

    Raises SourceError, with file and line, for text that does not compile.
    """

    def build(folder: Path, built: Path) -> None:
        objects = folder / "kernel.o"
        _compile(signature, mode, folder, "-emit-obj", "-o", str(objects))
        _zig("ld.lld", "-shared", str(objects), str(runtime()), "-o", str(built))

    return _kept(f"{signature.text()}\n{mode}", ".so", build)


def llvm_ir(signature: Signature) -> str:
    """A kernel as LLVM's text, with device memory in addrspace(1), constant (2) and threadgroup (3)."""

    def build(folder: Path, built: Path) -> None:
        _compile(signature, COUNTED, folder, "-emit-llvm", "-o", str(built))

    return _kept(f"{signature.text()}\n{COUNTED}", ".ll", build).read_text()


def library_of(llvm: str) -> Path:
    """The shared library of LLVM's text as it stands."""

    def build(folder: Path, built: Path) -> None:
        written, objects = folder / "kernel.ll", folder / "kernel.o"
        written.write_text(llvm)
        flags = ("-cc1", "-x", "ir", *_TARGET, "-O1", "-disable-llvm-passes", "-emit-obj")
        _zig(*flags, str(written), "-o", str(objects))
        _zig("ld.lld", "-shared", str(objects), str(runtime()), "-o", str(built))

    return _kept(llvm, ".so", build)


def translated(signature: Signature) -> str:
    """A kernel as clang gets it. Raises SourceError for what Apple's compiler would refuse.

    All instances of a template are translated once: they differ in the call of the entry.
    """
    limits.check(signature)
    source = _without_includes(translate.source(signature))

    def build(_: Path, built: Path) -> None:
        preprocessed = _zig(*_LANGUAGE, "-E", "-", text=source)[0]
        tokens = tokenize(preprocessed, "generated")
        lint.check(tokens)
        built.write_text(translate.translate(tokens))

    return _kept(source, ".cl", build).read_text() + translate.entry(signature)


@functools.cache
def runtime() -> Path:
    """The runtime's library, built if need be. Raises OSError if there is no C++ compiler."""

    def build(_: Path, built: Path) -> None:
        compiler = shutil.which("g++") or shutil.which("c++")
        if not compiler:
            raise OSError("no C++ compiler to build the kernels' runtime with")
        flags = "-std=c++17 -O2 -shared -fPIC -ftls-model=initial-exec -w".split()
        files = [str(f) for f in sorted(RUNTIME.glob("*.cpp"))]
        libraries = ["-Wl,--no-as-needed", "-lm", "-ldl", "-lpthread"]
        _run(compiler, *flags, *files, "-o", str(built), *libraries)

    return _kept("runtime", ".so", build)


def _compile(signature: Signature, mode: Mode, folder: Path, *output: str) -> None:
    written = folder / "kernel.cl"
    written.write_text(translated(signature))
    precompiled = ("-include-pch", str(header(mode)))
    _, remarks = _zig(*_LANGUAGE, *_CODE, *mode.flags, *precompiled, str(written), *output)
    _check(remarks)


def _check(remarks: str) -> None:
    """Raises SourceError for what clang takes, and remarks on, and Apple's compiler refuses."""
    found = [
        f"{place}: {what}"
        for pattern, what in _REMARKS.items()
        for place in pattern.findall(remarks)
        if not place.startswith(str(include()))
    ]
    if found:
        raise SourceError("\n".join(dict.fromkeys(found)))


@functools.cache
def header(mode: Mode) -> Path:
    """metal.h, precompiled."""

    def build(_: Path, built: Path) -> None:
        source = str(include() / "metal.h")
        _zig(*_LANGUAGE, *_CODE, *mode.flags, "-emit-pch", source, "-o", str(built))

    return _kept(f"header\n{mode}", ".pch", build)


def _without_includes(text: str) -> str:
    """Without Metal's own headers, of which the precompiled one has everything."""
    return HEADERS.sub("", text)


def _kept(content: str, suffix: str, build: Callable[[Path, Path], None]) -> Path:
    """What `build` makes in a temporary folder, named after its content."""
    path = _folder() / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}{suffix}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            built = Path(folder) / path.name
            build(Path(folder), built)
            built.replace(path)
    return path


@functools.cache
def include() -> Path:
    """The folder of metal.h: beside the products, which name its files, so that they serve every checkout."""
    folder = _folder() / "include"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as temporary:
            copied = Path(shutil.copytree(HERE / "include", Path(temporary) / "include"))
            try:
                copied.rename(folder)
            except OSError:
                if not folder.exists():  # as it does when another process was first
                    raise
    return folder


@functools.cache
def _folder() -> Path:
    """Where products are kept: a folder for the tools as they are; those of other tools go when they are old."""
    folder = cache_folder() / f"msl-{_tools()[:32]}"
    if not folder.exists():
        for other in cache_folder().glob("msl-*"):
            if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _tools() -> str:
    """A hash of all that makes products: the compiler's version, its flags, the files here; in any checkout."""
    version = importlib.metadata.version("ziglang")
    digest = hashlib.sha256(f"{version} {_LANGUAGE} {_CODE}".encode())
    files = [*HERE.glob("*.py"), *(HERE / "include").glob("*"), *RUNTIME.glob("*")]
    for path in sorted(f for f in files if f.is_file()):
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _zig_path() -> Path:
    """The compiler, from PyPI's ziglang: a clang of a known version."""
    import ziglang

    return Path(ziglang.__file__).parent / "zig"


def _zig(*arguments: str, text: str | None = None) -> tuple[str, str]:
    return _run(str(_zig_path()), *arguments, text=text)


def _run(*command: str, text: str | None = None) -> tuple[str, str]:
    """What the command writes to its two outputs. Raises SourceError if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        message = _errors(done.stderr) or done.stderr.strip()
        raise SourceError(message or f"{command[0]} failed with {done.returncode}")
    return done.stdout, done.stderr


def _errors(diagnostics: str) -> str:
    """What clang says without its warnings and remarks, and what it adds to them."""
    kept, keep = [], True
    for line in diagnostics.strip().splitlines():
        found = _DIAGNOSTIC.match(line)
        if found and found[1] != "note":
            keep = "error" in found[1]
        if keep:
            kept.append(line)
    return "\n".join(kept)
