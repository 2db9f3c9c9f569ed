"""Folders with safetensors files as they are written: planned first, then tensor by tensor, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mlx_ferrum.progress import bar

from .checkpoint import INDEX, SIZES
from .output import HEADER_BYTES, beside, check_space, named

if TYPE_CHECKING:
    from tqdm import tqdm

MOST = 5 * 10**9  # bytes in a file, as mlx_lm has it


@dataclass(frozen=True)
class Array:
    """A tensor of a safetensors file. dtype: as its header has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True)
class Module:
    """Arrays that are made together: the codes, scales and biases of a matrix.

    name, shape: of what they are made of; source, becomes: for people, "Q4_K", "4 bits"
    data: makes the bytes of all arrays, one after the other, in pieces; called once, in the order of the files
    """

    name: str
    shape: tuple[int, ...]
    source: str
    becomes: str
    arrays: tuple[Array, ...]
    data: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def check(out: Path) -> None:
    """Raises an error if a folder cannot be made, or exists and is not empty."""
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out}: is there already and not empty; name another folder")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: is a file; expected the name of a folder")
    parent = out.resolve().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{parent}: no such folder")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{parent}: no permission to write")


def write(
    out: Path, modules: Sequence[Module], texts: Mapping[str, Any], *, most: int = MOST
) -> None:
    """Write a folder with a progress bar; it appears under its name when it is complete.

    texts: files by their names, text or what becomes JSON; most: bytes in a safetensors file
    Raises ValueError if data does not have the planned size, OSError if the disk is too small or fails.
    """
    total = sum(module.nbytes for module in modules)
    check_space(out.resolve(), total + HEADER_BYTES)
    shards = _shards(modules, most)
    names = [_file_name(i, len(shards)) for i in range(len(shards))]
    with (
        _replaced(out) as partial,
        bar(total=total, desc=out.name, unit="B", unit_scale=True) as shown,
    ):
        for name, shard in zip(names, shards, strict=True):
            with named(out / name):
                _write(partial / name, shard, shown)
        if len(shards) > 1:
            texts = {**texts, INDEX: _index(names, shards, total)}
        for name, content in texts.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            with named(out / name):
                (partial / name).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends, and is removed if it fails."""
    partial = beside(out)
    partial.mkdir()
    try:
        yield partial
        check(out)  # which may be there, empty; another run may have filled it
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _shards(modules: Sequence[Module], most: int) -> list[list[Module]]:
    """Modules by file, in order; a module larger than `most` has a file of its own."""
    shards: list[list[Module]] = [[]]
    used = 0
    for module in modules:
        if shards[-1] and used + module.nbytes > most:
            shards.append([])
            used = 0
        shards[-1].append(module)
        used += module.nbytes
    return shards


def _file_name(i: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{i + 1:05}-of-{count:05}.safetensors"


def _index(names: Sequence[str], shards: Sequence[Sequence[Module]], total: int) -> dict[str, Any]:
    where = {
        array.name: name
        for name, shard in zip(names, shards, strict=True)
        for module in shard
        for array in module.arrays
    }
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def _write(path: Path, modules: Sequence[Module], shown: tqdm[Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    start = 0
    for array in (array for module in modules for array in module.arrays):
        offsets = [start, start + array.nbytes]
        header[array.name] = {"dtype": array.dtype, "shape": array.shape, "data_offsets": offsets}
        start += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for module in modules:
            _write_module(out, module, shown)
        out.flush()
        os.fsync(out.fileno())


def _write_module(out: BinaryIO, module: Module, shown: tqdm[Any]) -> None:
    written = 0
    for piece in module.data():
        out.write(np.ascontiguousarray(piece).data)
        written += piece.nbytes
        shown.update(piece.nbytes)
    if written != module.nbytes:
        raise ValueError(f"tensor {module.name!r}: expected {module.nbytes} bytes, found {written}")
