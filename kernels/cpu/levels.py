"""Instruction sets that the kernels are written for, and which of them this processor has."""

from __future__ import annotations

import platform
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-pthread", "-w")
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
# Every extension that the compiler may use unasked, by its name in /proc/cpuinfo; abm is lzcnt.
_HASWELL = tuple("avx2 fma f16c bmi1 bmi2 abm movbe popcnt".split())
_AVX512 = tuple("avx512f avx512cd avx512bw avx512dq avx512vl".split())
# What the compiler is told, and the processor flags that running the result takes.
LEVELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "native": ((NATIVE,), ()),
    "avx512-vnni": (
        ("-march=haswell", *(f"-m{name}" for name in _AVX512), "-mavx512vnni"),
        (*_HASWELL, *_AVX512, "avx512_vnni"),
    ),
    "avxvnni": (("-march=haswell", "-mavxvnni"), (*_HASWELL, "avx_vnni")),
    "avx2": (("-march=haswell",), _HASWELL),
    "portable": (("-DFERRUM_PORTABLE",), ()),
}
PREBUILT = ("avx512-vnni", "avx2")  # levels that wheels for Linux x86-64 carry, the best first


def flags(level: str = "native") -> tuple[str, ...]:
    """What the compiler is told."""
    return (*FLAGS, *LEVELS[level][0])


def levels() -> list[str]:
    """The levels whose instructions this processor has."""
    words = set(processor().split())
    return [level for level, (_, needed) in LEVELS.items() if words.issuperset(needed)]


def processor() -> str:
    """What tells processors apart that share a cache folder: instruction sets differ, so does code."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    keys = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text(errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(keys)}))
