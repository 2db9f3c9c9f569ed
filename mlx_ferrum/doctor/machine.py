"""What a machine has that decides how fast models run on it. Nothing that tells one machine from its like."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .. import __version__, memory
from ..kernels.cpu import build, native
from ..lazy import missing, mx
from ..system import first_line, is_mac, output, sysctl
from .privacy import without_folders

_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "asimddp", "i8mm", "sve", "sve2")
_APPLE_FLAGS = ("FEAT_DotProd", "FEAT_I8MM", "FEAT_BF16", "FEAT_SME")
# MLX's device.cpp, by the last letter of the architecture: base and Pro, Max, Ultra, phone
_COMMITS = {"g": (40, 40), "s": (50, 50), "d": (50, 50), "p": (20, 40)}


@dataclass(frozen=True)
class Gpu:
    """A GPU that MLX can use. memory, working_set, largest_buffer: bytes.

    working_set: what Metal recommends as the most to use at a time
    wired_limit: bytes that the user set with iogpu.wired_limit_mb
    commit_operations, commit_megabytes: after how much MLX hands work to the GPU
    commits_are_set: whether the user set either of them
    """

    name: str
    architecture: str | None
    metal: bool
    cores: int | None
    memory: int | None
    working_set: int | None
    largest_buffer: int | None
    wired_limit: int | None
    commit_operations: int | None
    commit_megabytes: int | None
    commits_are_set: bool


@dataclass(frozen=True)
class Machine:
    """A machine and what is installed on it. memory: bytes; available: bytes free now, None if unknown.

    cores: that this process may use; core_kinds: performance and efficiency cores where they differ
    compiler: the first line of its --version, None if there is no C++ compiler
    """

    version: str
    mlx: str
    python: str
    system: str
    processor: str
    features: tuple[str, ...]
    cores: int
    core_kinds: tuple[int, ...]
    memory: int
    available: int | None
    compiler: str | None
    gpu: Gpu | None


def inspect() -> Machine:
    """The machine that runs this process."""
    works = missing() is None
    return Machine(
        version=__version__,
        mlx=_mlx_version(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=_system(),
        processor=_processor() if works else platform.machine(),
        features=_features(),
        cores=native.cores(),
        core_kinds=_core_kinds(),
        memory=memory.total(),
        available=memory.available(),
        compiler=_compiler(),
        gpu=_gpu() if works and mx.is_available(mx.gpu) else None,
    )


def _mlx_version() -> str:
    try:
        return metadata.version("mlx")
    except metadata.PackageNotFoundError:
        return "missing"


def _processor() -> str:
    return str(mx.device_info(mx.cpu).get("device_name") or platform.machine())


def _system() -> str:
    if is_mac():
        name = f"macOS {platform.mac_ver()[0]}"
    else:
        try:
            name = platform.freedesktop_os_release()["PRETTY_NAME"]
        except (OSError, KeyError):
            name = platform.system()
    return f"{name}, {platform.machine()}"


def _features() -> tuple[str, ...]:
    """The SIMD that matters to kernels, by the names of the system."""
    if is_mac():
        return tuple(name for name in _APPLE_FLAGS if sysctl(f"hw.optional.arm.{name}"))
    flags = set(re.findall(r"\S+", first_line("/proc/cpuinfo", r"(?:flags|Features)\s*:(.*)")))
    return tuple(flag for flag in _FLAGS if flag in flags)


def _core_kinds() -> tuple[int, ...]:
    if not is_mac():
        return ()
    kinds = (sysctl(f"hw.perflevel{level}.physicalcpu") for level in (0, 1))
    return tuple(kind for kind in kinds if kind)


def _compiler() -> str | None:
    if is_mac() and not output("xcode-select", "-p"):
        return None  # /usr/bin/c++ would open a window that offers to install one
    try:
        found = build.find_compiler()
    except build.BuildError:
        return None
    return without_folders(next(iter(output(*found, "--version").splitlines()), "unknown"))


def _gpu() -> Gpu:
    info: Mapping[str, Any] = mx.device_info(mx.gpu)
    metal = mx.metal.is_available()
    architecture = info.get("architecture")
    operations, megabytes = _COMMITS.get(str(architecture)[-1], (40, 40))
    given = [os.environ.get(f"MLX_MAX_{what}_PER_BUFFER") for what in ("OPS", "MB")]
    return Gpu(
        name=str(info.get("device_name", "unknown")),
        architecture=None if architecture is None else str(architecture),
        metal=metal,
        cores=_gpu_cores() if metal else None,
        memory=info.get("memory_size", info.get("total_memory")),
        working_set=info.get("max_recommended_working_set_size"),
        largest_buffer=info.get("max_buffer_length"),
        wired_limit=(sysctl("iogpu.wired_limit_mb") or 0) << 20 or None,
        commit_operations=_number(given[0], operations) if metal else None,
        commit_megabytes=_number(given[1], megabytes) if metal else None,
        commits_are_set=any(given),
    )


def _gpu_cores() -> int | None:
    listing = output("ioreg", "-r", "-d", "1", "-c", "AGXAccelerator")
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', listing)
    return int(found[1]) if found else None


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() else default
