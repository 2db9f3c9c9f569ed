"""The compiled library: one that came with the package, or one compiled here from the C++ beside this file.

A wheel for Linux x86-64 carries libraries for common processors in prebuilt/. Elsewhere the library is compiled
once for the processor at hand and kept in the user's cache. Its name is made of everything it depends on but the
compiler, so a stale library is never loaded and a built one is found without a compiler. It is written to a temporary
file and renamed: several processes may build at once, and the last one wins with the same code.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .cache import build_folder, cache_folder, clean
from .compiler import BuildError, find_compiler, run_all
from .levels import LEVELS, NATIVE, PREBUILT, flags, levels, processor

__all__ = ["LEVELS", "BuildError", "find_compiler", "flags", "levels", "library"]

HERE = Path(__file__).parent
SLOWEST = "linear.cpp"  # half of the work: it starts first


def library(level: str = "native", *, extra: tuple[str, ...] = ()) -> Path:
    """The library for this processor: the best prebuilt one, else one that is built if need be.

    level: of LEVELS; the lower ones are for tests
    extra: further compiler flags, sanitizers for example
    Raises BuildError if it has to be built and there is no C++ compiler, or it fails.
    """
    ready = _prebuilt(level) if not extra else None
    if ready is not None:
        return ready
    folder, name = cache_folder(), f"cpu-{level}-{key(level, extra=extra)}"
    chosen = os.environ.get("CXX", "").strip()  # whoever sets it wants the library that it makes
    found = _newest(folder.glob(f"{name}-{_short(chosen) if chosen else '*'}.so"))
    if found is None:
        compiler = find_compiler()
        found = folder / f"{name}-{_short(chosen or ' '.join(compiler))}.so"
        _build(compiler, (*flags(level), *extra), found)
    return found


def is_prebuilt(path: Path) -> bool:
    """Whether a library came with the package."""
    return path.parent == HERE / "prebuilt"


def level_of(path: Path) -> str:
    """The level that a library was compiled for."""
    return next(level for level in LEVELS if path.name.startswith(f"cpu-{level}-"))


def key(level: str, *, extra: tuple[str, ...] = ()) -> str:
    """A hash of what a library depends on: sources, flags, and for "native" the processor."""
    options = (*flags(level), *extra)
    told = processor() if NATIVE in options else ""
    digest = hashlib.sha256(repr((options, platform.machine(), told)).encode())
    headers = [*HERE.glob("*.h"), *(HERE.parent / "blocks").glob("*.h")]
    for path in sorted([*sources(), *headers]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def sources() -> list[Path]:
    """The files that are compiled, each by itself, the slowest first."""
    return sorted(HERE.glob("*.cpp"), key=lambda path: (path.name != SLOWEST, path.name))


def compile_to(
    path: Path,
    compiler: Sequence[str],
    options: Sequence[str],
    *,
    link: Sequence[str] = (),
    done: Callable[[], object] = lambda: None,
) -> None:
    """Compile the library on all cores; path is written whole or not at all.

    link: further options of the linker
    done: called after each file
    Raises BuildError if the compiler fails.
    """
    with build_folder(path.parent) as folder:
        objects = {source: str(folder / f"{source.stem}.o") for source in sources()}
        compiling = [(*compiler, *options, "-c", str(s), "-o", o) for s, o in objects.items()]
        run_all(compiling, folder, done, at_once=os.cpu_count() or 1)
        linked = folder / path.name
        linking = (*compiler, *options, "-shared", *objects.values(), *link, "-o", str(linked))
        run_all([linking], folder, done, at_once=1)
        linked.replace(path)


def _prebuilt(level: str) -> Path | None:
    """The best library in the package that this processor runs and whose sources are those beside it."""
    if not (HERE / "prebuilt").is_dir():
        return None
    runs = levels()
    wanted = [name for name in PREBUILT if name in runs] if level == "native" else [level]
    paths = (HERE / "prebuilt" / prebuilt_name(name) for name in wanted)
    return next((path for path in paths if path.exists()), None)


def prebuilt_name(level: str) -> str:
    """The file name in prebuilt/ of the library for a level."""
    return f"cpu-{level}-{key(level)}.so"


def _newest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _build(compiler: tuple[str, ...], options: tuple[str, ...], path: Path) -> None:
    """Build with progress: a bar on a terminal, else a line."""
    from tqdm import tqdm

    text = f"compiling CPU kernels with {' '.join(compiler)}, once"
    shows = sys.stderr is not None and sys.stderr.isatty()
    if not shows:
        print(f"{text} …", file=sys.stderr, flush=True)
    clean(path.parent)
    try:
        with tqdm(desc=text, total=len(sources()) + 1, unit="file", disable=not shows) as bar:
            compile_to(path, compiler, options, done=bar.update)
    except OSError as error:
        raise BuildError(f"the CPU kernels cannot be compiled in {path.parent}: {error}") from error
