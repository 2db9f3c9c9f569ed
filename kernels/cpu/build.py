"""A compiled library: one that came with the package, or one compiled here from the C++ beside this file.

Other folders of kernels/ hold C++ that is built in the same way; it may include the headers here. A wheel for Linux
x86-64 carries libraries for common processors in the prebuilt/ of each folder. Elsewhere a library is compiled once
for the processor at hand and kept in the user's cache. Its name is made of everything it depends on but the
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
KINDS = {"cpu": "CPU kernels", "quantize": "quantizers"}  # folder of kernels/: what its library is
SLOWEST = "linear.cpp"  # half of the work: it starts first


def library(
    level: str = "native", *, extra: tuple[str, ...] = (), folder: Path | None = None
) -> Path:
    """The library for this processor: the best prebuilt one, else one that is built if need be.

    level: of LEVELS; the lower ones are for tests
    extra: further compiler flags, sanitizers for example
    folder: of the sources, in kernels/; this one by default
    Raises BuildError if it has to be built and there is no C++ compiler, or it fails.
    """
    source = folder or HERE
    ready = _prebuilt(level, source) if not extra else None
    if ready is not None:
        return ready
    cache = cache_folder()
    name = f"{_kind(source)}-{level}-{key(level, extra=extra, folder=folder)}"
    chosen = os.environ.get("CXX", "").strip()  # whoever sets it wants the library that it makes
    found = _newest(cache.glob(f"{name}-{_short(chosen) if chosen else '*'}.so"))
    if found is None:
        compiler = find_compiler()
        found = cache / f"{name}-{_short(chosen or ' '.join(compiler))}.so"
        _build(compiler, (*flags(level), *extra), found, source)
    return found


def is_prebuilt(path: Path) -> bool:
    """Whether a library came with the package."""
    return path.parent == HERE / "prebuilt"


def level_of(path: Path) -> str:
    """The level that a library was compiled for."""
    return next(level for level in LEVELS if path.name.startswith(f"cpu-{level}-"))


def key(level: str, *, extra: tuple[str, ...] = (), folder: Path | None = None) -> str:
    """A hash of what a library depends on: sources, flags, and for "native" the processor."""
    options = (*flags(level), *extra)
    told = processor() if NATIVE in options else ""
    digest = hashlib.sha256(repr((options, platform.machine(), told)).encode())
    source = folder or HERE
    folders = {HERE.parent, HERE.parent / "blocks", HERE, source}
    headers = (path for folder in folders for path in folder.glob("*.h"))
    for path in sorted([*sources(source), *headers]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def sources(folder: Path) -> list[Path]:
    """The files that are compiled, each by itself, the slowest first."""
    return sorted(folder.glob("*.cpp"), key=lambda path: (path.name != SLOWEST, path.name))


def compile_to(
    path: Path,
    compiler: Sequence[str],
    options: Sequence[str],
    *,
    folder: Path | None = None,
    link: Sequence[str] = (),
    done: Callable[[], object] = lambda: None,
) -> None:
    """Compile a library on all cores; path is written whole or not at all.

    folder: of the sources, this one by default
    link: further options of the linker
    done: called after each file
    Raises BuildError if the compiler fails.
    """
    with build_folder(path.parent) as temporary:
        files = sources(folder or HERE)
        objects = {source: str(temporary / f"{source.stem}.o") for source in files}
        compiling = [(*compiler, *options, "-c", str(s), "-o", o) for s, o in objects.items()]
        run_all(compiling, temporary, done, at_once=os.cpu_count() or 1)
        linked = temporary / path.name
        linking = (*compiler, *options, "-shared", *objects.values(), *link, "-o", str(linked))
        run_all([linking], temporary, done, at_once=1)
        linked.replace(path)


def _prebuilt(level: str, folder: Path) -> Path | None:
    """The best library in the package that this processor runs and whose sources are those beside it."""
    if not (folder / "prebuilt").is_dir():
        return None
    runs = levels()
    wanted = [name for name in PREBUILT if name in runs] if level == "native" else [level]
    paths = (folder / "prebuilt" / prebuilt_name(name, folder) for name in wanted)
    return next((path for path in paths if path.exists()), None)


def prebuilt_name(level: str, folder: Path | None = None) -> str:
    """The file name in prebuilt/ of a folder's library for a level."""
    return f"{_kind(folder or HERE)}-{level}-{key(level, folder=folder)}.so"


def _kind(folder: Path) -> str:
    return "cpu" if folder == HERE else folder.name


def _newest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _build(compiler: tuple[str, ...], options: tuple[str, ...], path: Path, folder: Path) -> None:
    """Build with progress: a bar in a terminal or a notebook, else a line."""
    from mlx_ferrum.progress import bar, is_shown

    what = KINDS[_kind(folder)]
    text = f"compiling {what} with {' '.join(compiler)}, once"
    if not is_shown():
        print(f"{text} …", file=sys.stderr, flush=True)
    clean(path.parent)
    try:
        with bar(desc=text, total=len(sources(folder)) + 1, unit="file") as shown:
            compile_to(path, compiler, options, folder=folder, done=shown.update)
    except OSError as error:
        raise BuildError(f"the {what} cannot be compiled in {path.parent}: {error}") from error
