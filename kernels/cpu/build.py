"""Compile the C++ beside this file, or in a folder beside it, once for each source, compiler, flags and processor.

The library lies in a private folder of the user's cache, under a name made of all it depends on, so
that a stale one is never loaded. It is written to a temporary file and renamed: several processes may
build at once, and the last one wins with the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-pthread", "-w")
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
# Instruction sets that the kernels are written for: what the compiler is told, and the processor flags
# that running them takes.
LEVELS = {
    "native": ((NATIVE,), ()),
    "avxvnni": (("-march=haswell", "-mavxvnni"), ("avx2", "fma", "f16c", "bmi2", "avx_vnni")),
    "avx2": (("-march=haswell",), ("avx2", "fma", "f16c", "bmi2")),
    "portable": (("-DFERRUM_PORTABLE",), ()),
}
KEPT_DAYS = 30


class BuildError(OSError):
    """The library cannot be built here; the message says what is missing."""


def library(
    level: str = "native", *, extra: tuple[str, ...] = (), folder: Path | None = None
) -> Path:
    """The library for this processor, built if need be.

    level: of LEVELS; the lower ones are for tests
    extra: further compiler flags, sanitizers for example
    folder: of the sources, which may include the headers here; this one by default
    Raises BuildError if there is no C++ compiler or it fails.
    """
    compiler = find_compiler()
    options = (*flags(level), *extra)
    source = HERE if folder is None else folder
    kind, what = (
        ("cpu", "CPU kernels") if folder is None else (folder.name, f"kernels/{folder.name}")
    )
    path = cache_folder() / f"{kind}-{_key(compiler, options, source)}.so"
    if not path.exists():
        print(f"compiling {what} with {compiler}, once …", file=sys.stderr, flush=True)
        try:
            _build(compiler, options, source, path)
            _remove_old(path.parent, kind)
        except OSError as error:
            raise BuildError(f"the {what} cannot be compiled in {path.parent}: {error}") from error
    return path


def flags(level: str = "native") -> tuple[str, ...]:
    """What the compiler is told; see `library`."""
    return (*FLAGS, *LEVELS[level][0])


def levels() -> list[str]:
    """The levels whose instructions this processor has."""
    words = set(_processor().split())
    return [level for level, (_, needed) in LEVELS.items() if words.issuperset(needed)]


def find_compiler() -> str:
    """The system's C++ compiler. Raises BuildError, with what to install, if there is none."""
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    how = (
        "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++, or the like"
    )
    raise BuildError(f"no C++ compiler (looked for {', '.join(COMPILERS)}); {how} brings one")


def sources(folder: Path) -> list[Path]:
    """The files that are compiled, each by itself."""
    return sorted(folder.glob("*.cpp"))


def _key(compiler: str, options: tuple[str, ...], folder: Path) -> str:
    digest = hashlib.sha256(repr((options, platform.machine(), _processor())).encode())
    digest.update(_run(compiler, "--version").encode())
    headers = {*HERE.glob("*.h"), *(HERE.parent / "blocks").glob("*.h"), *folder.glob("*.h")}
    for path in sorted([*sources(folder), *headers]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What tells processors apart that share a cache folder: instruction sets differ, so does code."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    keys = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text(errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(keys)}))


def cache_folder() -> Path:
    """A folder of this user's alone: in the user's cache, or where that cannot be written, in /tmp."""
    folders = [Path(tempfile.gettempdir()) / f"mlx_ferrum-{os.getuid()}"]
    base = _user_cache()
    if base is not None:
        folders.insert(0, base / "mlx_ferrum" / "kernels")
    for folder in folders:
        if _is_private(folder):
            return folder
    raise BuildError(
        f"no folder that this user alone can write: looked at {' and '.join(map(str, folders))}"
    )


def _user_cache() -> Path | None:
    """The user's cache by the custom of the platform; None for a user without a home."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and sys.platform != "darwin":
        return Path(xdg)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _is_private(folder: Path) -> bool:
    """Whether the folder is there, writable, and nobody else can put a library into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError:
        return False
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not others


def _build(compiler: str, options: tuple[str, ...], source_folder: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        objects = {
            source: str(Path(folder) / f"{source.stem}.o") for source in sources(source_folder)
        }

        def compile_one(source: Path) -> None:
            _run(compiler, *options, "-c", str(source), "-o", objects[source])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        linked = Path(folder) / path.name
        _run(compiler, *options, "-shared", *objects.values(), "-o", str(linked))
        linked.replace(path)


def _remove_old(folder: Path, kind: str) -> None:
    """Remove libraries of sources or processors long gone; a process that still uses one keeps it."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for path in folder.glob(f"{kind}-*.so"):
        with contextlib.suppress(OSError):  # another process removed it
            if path.stat().st_mtime < oldest:
                path.unlink()


def _run(*command: str) -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError as error:
        raise BuildError(f"{name} cannot be run: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        message = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{name} failed: {message}")
    return done.stdout
