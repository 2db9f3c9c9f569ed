"""GGUF files as they are written: planned first, then tensor by tensor, all files whole or none."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import gguf
import numpy as np
from gguf.gguf_writer import GGUFValue, WriterState

from mlx_ferrum.blocks import BlockType
from mlx_ferrum.progress import bar

from .values import pack

if TYPE_CHECKING:
    from tqdm import tqdm

HEADER_BYTES = 16 << 20  # allowed for metadata and tensor names when free space is checked
NAME_BYTES = 200  # of a name that a temporary one begins with: file systems take 255
ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class Value:
    """A metadata value with its GGUF type.

    element: the type of an array's elements
    raw: type and value as bytes, where they are copied from a file: written as they are
    """

    value: Any
    kind: gguf.GGUFValueType
    element: gguf.GGUFValueType | None = None
    raw: bytes | None = None

    @property
    def packed(self) -> bytes:
        """The bytes in a file: a uint32 type, then the value. Raises ValueError if the type does not hold it."""
        return pack(self.value, self.kind, self.element) if self.raw is None else self.raw


@dataclass(frozen=True)
class Planned:
    """A tensor to be written.

    source: what it is made of, for people: a type such as "BF16"
    data: makes the bytes, uint8 in any shape, whole or in pieces; called once, in the order of the file
    """

    name: str
    block: type[BlockType]
    shape: tuple[int, ...]
    source: str
    data: Callable[[], np.ndarray | Iterator[np.ndarray]]

    @property
    def becomes(self) -> str:
        """What it is written as, for people."""
        return self.block.name

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * self.block.row_bytes(self.shape[-1])

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class File:
    """A GGUF file to be written."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Sequence[Planned]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.nbytes for t in self.tensors)


class Listed(Protocol):
    """A line of `table`."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def source(self) -> str: ...
    @property
    def becomes(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def weights(self) -> int: ...


def table(tensors: Sequence[Listed]) -> Iterator[str]:
    """What would be written, a line per tensor and a total, for --dry-run."""
    width = max((len(t.name) for t in tensors), default=4)
    yield f"{'tensor':<{width}}  {'shape':<22} {'from':<6} {'to':<7} {'bytes':>15}"
    for t in tensors:
        shape = " x ".join(map(str, t.shape))
        yield f"{t.name:<{width}}  {shape:<22} {t.source:<6} {t.becomes:<7} {t.nbytes:>15,}"
    total, weights = sum(t.nbytes for t in tensors), sum(t.weights for t in tensors)
    bits = 8 * total / weights if weights else 0.0
    yield f"{len(tensors)} tensors, {total:,} bytes, {bits:.2f} bits per weight"


def write(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Planned]) -> None:
    """Write one file; see `write_files`."""
    write_files([File(path, metadata, tensors)])


def write_files(files: Sequence[File], *, mode: int | None = None) -> None:
    """Write GGUF files with a progress bar. They appear under their names when all are complete.

    mode: permissions, instead of the default ones
    Raises ValueError if a tensor's data does not have the planned size, OSError if the disk is too small or fails.
    """
    total = sum(file.nbytes for file in files)
    check_space(files[0].path, total + HEADER_BYTES)
    name = files[0].path.name
    with (
        replaced([file.path for file in files]) as partials,
        bar(total=total, desc=name, unit="B", unit_scale=True) as shown,
    ):
        for file, partial in zip(files, partials, strict=True):
            with named(file.path):
                _write(partial, file, shown)
            if mode is not None:
                partial.chmod(stat.S_IMODE(mode))


@contextlib.contextmanager
def replaced(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary files beside `paths` that take their places when the block ends, and are removed if it fails.

    The first one comes last: a split model without its first part cannot be taken for a whole one.
    """
    partials = [beside(path) for path in paths]
    placed: list[Path] = []
    try:
        yield partials
        for partial, path in reversed(list(zip(partials, paths, strict=True))):
            partial.replace(path)
            placed.append(path)
    finally:
        incomplete = [] if len(placed) == len(paths) else placed
        for path in (*partials, *incomplete):
            path.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A hidden name in the same folder that no other run uses, also one in another container or on another machine."""
    start = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
    return path.with_name(f".{start}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """A write that fails, on a full disk for example, names the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_space(path: Path, needed: int) -> None:
    """Raises OSError if the disk of `path` has fewer bytes free."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(f"{path}: needs {needed / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free")


def _write(path: Path, file: File, shown: tqdm[Any]) -> None:
    writer = _writer(path, file)
    try:
        assert writer.fout is not None
        (out,) = writer.fout
        for t in file.tensors:
            writer.write_padding(out, out.tell())
            _write_tensor(out, t, shown)
        writer.write_padding(out, out.tell())
        out.flush()
        os.fsync(out.fileno())
    finally:
        writer.close()


def _writer(path: Path, file: File) -> gguf.GGUFWriter:
    """A writer with the header written; the tensors' data follows in their order."""
    packed = [_pack(key, value) for key, value in file.metadata.items()]
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data = [{k: GGUFValue(v.value, v.kind) for k, v in file.metadata.items()}]
    if ALIGNMENT in file.metadata:
        writer.data_alignment = file.metadata[ALIGNMENT].value
    for t in file.tensors:
        kind: Any = t.block.id  # a number: the writer's enumeration lacks the newest types
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.nbytes, kind)
    try:
        writer.write_header_to_file()
        # the writer has no empty arrays, and no types of the elements of nested ones
        (out,) = writer.fout or []
        out.write(b"".join(packed))
        writer.state = WriterState.KV_DATA
        writer.write_ti_data_to_file()
    except BaseException:
        writer.close()
        raise
    return writer


def _pack(key: str, value: Value) -> bytes:
    name = key.encode()
    try:
        return len(name).to_bytes(8, "little") + name + value.packed
    except ValueError as error:
        raise ValueError(f"metadata {key!r}: {error}") from error


def _write_tensor(out: BinaryIO, tensor: Planned, shown: tqdm[Any]) -> None:
    data, written = tensor.data(), 0
    pieces: Iterable[np.ndarray] = [data] if isinstance(data, np.ndarray) else data
    for piece in pieces:
        if piece.dtype != np.uint8:
            raise ValueError(f"tensor {tensor.name!r}: expected bytes, found {piece.dtype}")
        out.write(np.ascontiguousarray(piece).data)
        written += piece.nbytes
        shown.update(piece.nbytes)
    if written != tensor.nbytes:
        raise ValueError(f"tensor {tensor.name!r}: expected {tensor.nbytes} bytes, found {written}")
