"""The GGUF models of a folder. Knows no server."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_ferrum import gguf
from mlx_ferrum.catalog import hub

from .about import About, of_file

PROJECTORS = ("clip", "mmproj")
PART = re.compile(r"-\d{5}-of-\d{5}$")

Version = tuple[str, int, int, int]


@dataclass(frozen=True)
class File:
    """A model of a folder.

    name: the file's, without `.gguf` and the number of a part; with its folders where that is not enough
    path: of its first file
    nbytes: of all its files
    modified: seconds since 1970
    versions: of its files: path, inode, size and time; others are another model
    about: None for a file that is not sound: loading it names the error
    """

    name: str
    path: Path
    nbytes: int
    modified: int
    versions: tuple[Version, ...]
    about: About | None


@dataclass
class Folder:
    """A folder and those in it; links to folders are not followed.

    left_out: why files are no models, by their path in the folder; of the last listing
    """

    path: Path
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            found = "a file" if self.path.exists() else "nothing"
            raise ValueError(f"{self.path}: {found} found, expected a folder with models")
        self._known: dict[tuple[Version, ...], About | str | None] = {}

    def list(self) -> Sequence[File]:
        """Its models, by their path. Headers are read once, and what cannot be read is not there."""
        relative = [path for path in self._paths() if path.name[0] != "."]
        models = hub.models(path.as_posix() for path in relative)
        gguf_files = (path.as_posix() for path in relative if path.suffix.lower() == ".gguf")
        firsts = {PART.sub("", path[:-5]) for path in models}
        self.left_out = {
            path: "goes with another model"
            for path in gguf_files
            if PART.sub("", path[:-5]) not in firsts
        }
        found: dict[str, tuple[tuple[Version, ...], About | None]] = {}
        known: dict[tuple[Version, ...], About | str | None] = {}
        for path in models:
            if not (versions := tuple(_versions(self.path, path))):
                continue
            is_new = versions not in self._known
            about = known[versions] = _read(self.path / path) if is_new else self._known[versions]
            if isinstance(about, str):
                self.left_out[path] = about
            else:
                found[path] = versions, about
        self._known = known
        names = _names(list(found))
        return [
            File(names[path], self.path / path, *_sums(versions), versions, about)
            for path, (versions, about) in found.items()
        ]

    def _paths(self) -> Iterator[Path]:
        """All files, relative to the folder."""
        for folder, folders, files in os.walk(self.path):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            for name in sorted(files):
                yield (Path(folder) / name).relative_to(self.path)


def read_file(path: Path, name: str) -> File:
    """A model that is in no folder. Raises ValueError for a file that is no model, OSError if it cannot be had."""
    versions = tuple(_versions(path.parent, path.name))
    about = of_file(gguf.read(path))
    return File(name, path, *_sums(versions), versions, about)


def _sums(versions: Sequence[Version]) -> tuple[int, int]:
    """Bytes of all, and when the last one was modified, in seconds."""
    return sum(size for _, _, size, _ in versions), max(time for *_, time in versions) // 10**9


def _versions(folder: Path, path: str) -> Iterator[Version]:
    """Of the parts of a model that are there; none without the one that is named."""
    for part in hub.parts(path):
        try:
            status = (folder / part).stat()
        except OSError:
            if part == path:
                return
            continue
        yield part, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> About | str | None:
    try:
        file = gguf.read(path)
    except (ValueError, OSError):
        return None
    kind, architecture = (file.metadata.get(f"general.{key}") for key in ("type", "architecture"))
    if architecture in PROJECTORS or kind in ("mmproj", "imatrix", "adapter"):
        return f"is of type {kind or architecture}"
    return of_file(file) if file.tensors else "has a vocabulary only"


def _names(paths: Sequence[str]) -> dict[str, str]:
    """A name for each path: the shortest of its spellings that no other path has in its place."""
    spellings = {path: _spellings(path) for path in paths}
    found: dict[str, str] = {}
    left = list(paths)
    for level in range(len(next(iter(spellings.values()), []))):
        count = Counter(spellings[path][level] for path in left)
        for path in left:
            name = spellings[path][level]
            if count[name] == 1 and name not in found.values():
                found[path] = name
        left = [path for path in left if path not in found]
    return found | {path: f"{spellings[path][-1]} ({i})" for i, path in enumerate(left, 1)}


def _spellings(path: str) -> list[str]:
    """From the shortest to the whole path, as text that a client can send."""
    shown = unicodedata.normalize("NFC", os.fsencode(path).decode("utf-8", "replace"))
    whole = shown[: -len(".gguf")]
    short = PART.sub("", whole)
    return [short.rpartition("/")[2], short, whole, shown]
