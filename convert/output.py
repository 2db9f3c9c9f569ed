"""GGUF files as they are written: planned first, then tensor by tensor, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tqdm import tqdm

from mlx_ferrum.blocks import Block

HEADER_BYTES = 64 << 20  # allowed for metadata and tensor names when free space is checked
ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class Value:
    """A metadata value with its GGUF type. element: the type of an array's elements."""

    value: Any
    kind: gguf.GGUFValueType
    element: gguf.GGUFValueType | None = None


@dataclass(frozen=True)
class Planned:
    """A tensor to be written.

    source: what it is made of, for people: a type such as "BF16"
    data: makes the bytes, (..., rows, row bytes) uint8; called once, in the order of the file
    """

    name: str
    block: type[Block]
    shape: tuple[int, ...]
    source: str
    data: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * self.block.row_bytes(self.shape[-1])

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))


def table(tensors: Sequence[Planned]) -> Iterator[str]:
    """What would be written, a line per tensor and a total, for --dry-run."""
    width = max((len(t.name) for t in tensors), default=4)
    yield f"{'tensor':<{width}}  {'shape':<22} {'from':<6} {'to':<7} {'bytes':>15}"
    for t in tensors:
        shape = " x ".join(map(str, t.shape))
        yield f"{t.name:<{width}}  {shape:<22} {t.source:<6} {t.block.name:<7} {t.nbytes:>15,}"
    total, weights = sum(t.nbytes for t in tensors), sum(t.weights for t in tensors)
    bits = 8 * total / weights if weights else 0.0
    yield f"{len(tensors)} tensors, {total:,} bytes, {bits:.2f} bits per weight"


def write(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Planned]) -> None:
    """Write a GGUF file with a progress bar. It appears under its name when it is complete.

    Raises ValueError if a tensor's data does not have the planned size, OSError if the disk is too small or fails.
    """
    _check_space(path, sum(t.nbytes for t in tensors))
    with replaced(path) as partial:
        writer = _writer(partial, metadata, tensors)
        try:
            _write_data(writer, tensors, path.name)
            for file in writer.fout or []:
                file.flush()
                os.fsync(file.fileno())
        finally:
            writer.close()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends, and is removed if that fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_space(path: Path, nbytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    needed = nbytes + HEADER_BYTES
    if free < needed:
        raise OSError(f"{path}: needs {needed / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free")


def _writer(
    path: Path, metadata: Mapping[str, Value], tensors: Sequence[Planned]
) -> gguf.GGUFWriter:
    """A writer with the header written; the tensors' data follows in their order."""
    writer = gguf.GGUFWriter(path, metadata[ARCHITECTURE].value)
    for key, value in metadata.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value.value)
        elif key != ARCHITECTURE:
            writer.add_key_value(key, value.value, value.kind, value.element)
    for t in tensors:
        byte_shape = (*t.shape[:-1], t.block.row_bytes(t.shape[-1]))
        kind = gguf.GGMLQuantizationType(t.block.id)
        writer.add_tensor_info(t.name, byte_shape, np.dtype(np.uint8), t.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _write_data(writer: gguf.GGUFWriter, tensors: Sequence[Planned], name: str) -> None:
    total = sum(t.nbytes for t in tensors)
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None) as bar:
        for t in tensors:
            data = np.ascontiguousarray(t.data())
            if data.dtype != np.uint8 or data.nbytes != t.nbytes:
                raise ValueError(
                    f"tensor {t.name!r}: expected {t.nbytes} bytes, found {data.nbytes} of {data.dtype}"
                )
            writer.write_tensor_data(data)
            bar.update(t.nbytes)
