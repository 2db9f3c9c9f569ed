"""A GGUF model, in one file or several: mapping, the search for parts, the checks between them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import amounts
from .header import Header, TensorInfo, integer, quoted, read_header
from .mapping import MappedFile
from .values import failure


@dataclass(frozen=True, repr=False, eq=False)
class GGUF:
    """An open model. Its arrays are views of the mapping, which lives as long as any of them.

    path: the file that was opened
    metadata: key -> int, float, bool, str, ndarray (numbers), Strings, or list (arrays of arrays);
        of a split model, the first part's
    tensors: name -> TensorInfo, in file order
    parts: (file size,) uint8 each, read-only, page-aligned; one, or all files of a split model
    files: what the parts are mapped from
    spans: key -> where its type and value lie in the first part
    """

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    parts: list[np.ndarray]
    files: list[MappedFile] = field(default_factory=list)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    def check(self, *, thorough: bool = True) -> None:
        """Raises ValueError if a file was cut short since it was opened or, if thorough, written to."""
        for file in self.files:
            file.check(thorough=thorough)

    def data(self, name: str) -> np.ndarray:
        """A tensor's bytes: (nbytes,) uint8, a view of the file. ValueError if there is none."""
        if name not in self.tensors:
            count = len(self.tensors)
            raise ValueError(f"{self.path}: no tensor {quoted(name)} among its {count}")
        info = self.tensors[name]
        return self.parts[info.part][info.offset : info.offset + info.nbytes]

    def raw(self, key: str) -> bytes:
        """A metadata value as the file has it: a uint32 type, then the value. KeyError if there is none."""
        start, stop = self.spans[key]
        return self.parts[0][start:stop].tobytes()

    def __repr__(self) -> str:
        size = amounts.size(sum(part.size for part in self.parts))
        parts = f" in {len(self.parts)} files" if len(self.parts) > 1 else ""
        held = f"{len(self.metadata)} values, {len(self.tensors)} tensors"
        return f"GGUF({self.path.name!r}, {held}, {size}{parts})"


@dataclass(frozen=True)
class _Part:
    path: Path
    file: MappedFile
    header: Header


def read(path: str | os.PathLike[str]) -> GGUF:
    """Opens a GGUF file, or all files of a split model, given any one of them.

    Raises FileNotFoundError for a file or part that is missing, and ValueError, with file, field,
    what was found and what was expected, for one that is not GGUF 2 or 3 or is damaged.
    """
    given = _open(Path(path))
    parts = [given] if given.header.part_count == 1 else _all_parts(given)
    first, tensors = parts[0].header, _tensors(parts)
    if len(parts) > 1:
        _check_total(parts, len(tensors))
    return GGUF(
        path=given.path,
        version=first.version,
        alignment=first.alignment,
        metadata=first.metadata,
        tensors=tensors,
        parts=[part.file.array() for part in parts],
        files=[part.file for part in parts],
        spans=first.spans,
    )


def _open(path: Path) -> _Part:
    file = MappedFile(path)
    return _Part(path, file, read_header(path, file.mapped))


def _all_parts(given: _Part) -> list[_Part]:
    header = given.header
    paths = _part_paths(given)
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        what = f"part {missing[0] + 1} of {len(paths)}{more} missing"
        raise FileNotFoundError(f"{paths[missing[0]]}: {what}, expected beside {given.path.name}")
    parts = [given if i == header.part else _open(path) for i, path in enumerate(paths)]
    for i, part in enumerate(parts):
        found = (part.header.part, part.header.part_count)
        if found != (i, len(paths)):
            expected = f"{i + 1} of {len(paths)}, as in its name"
            named = f"part {found[0] + 1} of {found[1]}"
            raise failure(part.path, "metadata 'split.no'", named, expected)
    return parts


def _part_paths(given: _Part) -> list[Path]:
    """Where the parts should be, by the name of the one that was given."""
    part, count, name = given.header.part, given.header.part_count, given.path.name
    ending = f"-{part + 1:05}-of-{count:05}.gguf"
    if not name.endswith(ending):
        field = f"part {part + 1} of {count} of a split model: name"
        raise failure(given.path, field, quoted(name), f"one that ends in {ending}")
    stem = name.removesuffix(ending)
    return [given.path.with_name(f"{stem}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]


def _tensors(parts: list[_Part]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for info in part.header.tensors:
            if info.name in tensors:
                raise failure(
                    part.path, f"tensor {quoted(info.name)}", "it twice", "every name once"
                )
            tensors[info.name] = info
    return tensors


def _check_total(parts: list[_Part], total: int) -> None:
    for part in parts:
        promised = integer(part.path, part.header.metadata, "split.tensors.count")
        if promised != total:
            expected = f"{total}, as many as the {len(parts)} parts hold"
            raise failure(part.path, "metadata 'split.tensors.count'", str(promised), expected)
