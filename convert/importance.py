"""Importance of columns, as llama.cpp's imatrix files have it: the mean square of each input of a matrix.

A GGUF file has the tensors NAME.in_sum2, (matrices, k), and NAME.counts, (matrices, 1), for each matrix
NAME or stack of them. The old format (.dat) is a list of names, calls and sums, all little-endian, with
the number of chunks and the name of the text at its end.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_ferrum import gguf

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNKS = "imatrix.datasets", "imatrix.chunk_count"
CHUNK_SIZE = "imatrix.chunk_size"
MAX_NAME = 1 << 12


@dataclass(frozen=True, repr=False)
class Importance:
    """What a file says.

    columns: name of a tensor -> the importance of its columns, (matrices * k,) float32
    unused: name -> the matrices (experts) that no token reached; their columns count alike
    dataset: the text that it was measured on; chunks: how many pieces of it
    """

    path: Path
    columns: dict[str, np.ndarray]
    unused: dict[str, list[int]] = field(default_factory=dict)
    dataset: str | None = None
    chunks: int = 0

    def __repr__(self) -> str:
        return f"Importance({self.path.name!r}, {len(self.columns)} tensors, {self.chunks} chunks)"

    @property
    def origin_bytes(self) -> int:
        """What the names of the file and of the text take in the metadata of a model, about."""
        return len(os.fsencode(self.path)) + len((self.dataset or "").encode(errors="replace"))

    def of(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The importance of a tensor's columns, (matrices, k), or None if the file has none.

        Raises ValueError if the numbers do not fit the shape. For token embeddings they are left out then, as
        llama.cpp does.
        """
        found, k = self.columns.get(name), shape[-1]
        if found is None:
            return None
        matrices = int(np.prod(shape[:-2], dtype=np.int64))
        if found.size == matrices * k:
            return found.reshape(matrices, k)
        if name in ("token_embd.weight", "per_layer_token_embd.weight"):
            return None
        raise ValueError(
            f"{self.path}: {name!r} has {found.size} values, expected {matrices * k} "
            f"for a tensor of shape {' x '.join(map(str, shape))}"
        )


def read(path: Path) -> Importance:
    """Reads a file of either format. Raises ValueError if it is damaged or empty, OSError if it cannot be read."""
    with path.open("rb") as file:
        start = file.read(4)
    found = _read_gguf(path) if start == b"GGUF" else _read_old(path)
    if not found.columns:
        raise ValueError(f"{path}: no importance in this file; expected tensors NAME{SUMS}")
    for name, values in found.columns.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            bad = values[~(np.isfinite(values) & (values >= 0))][0]
            raise ValueError(
                f"{path}: {name!r}: expected finite values, not negative, found {bad:g}"
            )
    return found


def _read_gguf(path: Path) -> Importance:
    file = gguf.read(path)
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    columns, unused = {}, {}
    for name in names:
        sums, counts = (_floats(file, name + suffix) for suffix in (SUMS, COUNTS))
        counts = np.rint(counts)
        if not counts.size or sums.size % counts.size:
            raise ValueError(f"{path}: {name!r}: {sums.size} sums do not fit {counts.size} counts")
        sums, reached = sums.reshape(counts.size, -1), counts > 0
        means = np.divide(sums, counts[:, None], where=reached[:, None], out=np.ones_like(sums))
        columns[name] = means.reshape(-1)
        if not reached.all():
            unused[name] = np.flatnonzero(~reached).tolist()
    datasets, chunks = file.metadata.get(DATASETS), file.metadata.get(CHUNKS, 0)
    dataset = datasets[0] if isinstance(datasets, gguf.Strings) and len(datasets) else None
    return Importance(path, columns, unused, dataset, int(chunks))


def _floats(file: gguf.GGUF, name: str) -> np.ndarray:
    """A tensor's numbers, flat."""
    info = file.tensors.get(name)
    if info is None or info.type != "F32":
        found = "no such tensor" if info is None else info.type
        raise ValueError(f"{file.path}: {name!r}: expected F32, found {found}")
    return file.data(name).view(np.float32)


def _read_old(path: Path) -> Importance:
    reader = _Reader(path, path.read_bytes())
    columns = {}
    count = reader.number("number of entries", 1)
    for i in range(count):
        length = reader.number(f"entry {i + 1}: length of the name", 1)
        if length > MAX_NAME:
            raise ValueError(
                f"{path}: neither a GGUF nor an imatrix file: a name of {length} bytes"
            )
        name = reader.take(length, f"entry {i + 1}: name")
        calls = reader.number(f"entry {i + 1}: calls", 0)
        size = reader.number(f"entry {i + 1}: number of values", 1)
        sums = np.frombuffer(reader.take(4 * size, f"entry {i + 1}: values"), "<f4")
        columns[name.decode(errors="replace")] = sums / np.float32(calls) if calls else sums.copy()
    chunks, dataset = 0, None
    if reader.left():
        chunks = reader.number("number of chunks", 0)
    if reader.left():
        length = reader.number("length of the dataset's name", 0)
        dataset = reader.take(length, "the dataset's name").decode(errors="replace") or None
    return Importance(path, columns, {}, dataset, chunks)


@dataclass
class _Reader:
    path: Path
    data: bytes
    position: int = 0

    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, size: int, field: str) -> bytes:
        if size > self.left():
            found = f"{self.left()} bytes at {self.position}"
            raise ValueError(f"{self.path}: {field}: found {found}, expected {size}")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, field: str, least: int) -> int:
        value: int = struct.unpack("<i", self.take(4, field))[0]
        if value < least:
            raise ValueError(f"{self.path}: {field}: found {value}, expected {least} or more")
        return value
