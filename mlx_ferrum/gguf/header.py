"""The header of one GGUF file: version, metadata, and where each tensor lies, all checked.

Knows nothing of the other parts of a split model, nor of what the metadata means, but for the
alignment and the split's numbers.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ferrum.blocks import REMOVED, TYPES

from .values import Cursor, failure

MAX_ENTRIES = (
    1 << 18
)  # metadata values, and tensors; a packed file has three for every expert, up to some 100,000
MAX_ALIGNMENT = 1 << 24
MAX_DIMENSION = (1 << 31) - 1  # MLX's dimensions are int32
_TEXT = ("general.architecture", "tokenizer.")  # keys whose text is more than shown
_SMALLEST_VALUE = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

_FOREIGN = {
    b"PK\x03\x04": "a zip archive, such as a PyTorch checkpoint",
    b"version https://git-lfs": "a Git LFS pointer, the file itself was not downloaded",
    b"<": "a web page or XML",
    b"\x80": "a Python pickle",
    b"lmgg": "a GGML file, older than GGUF",
    b"fmgg": "a GGML file, older than GGUF",
    b"tjgg": "a GGML file, older than GGUF",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is.

    type: ggml's name, such as "Q4_K"
    shape: in NumPy's order, the row length last
    part: index of the file of a split model
    offset: bytes from the start of that file
    nbytes: bytes of data
    """

    name: str
    type: str
    shape: tuple[int, ...]
    part: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What one file says. `part` of `part_count` is 0 of 1 for a model in a single file.

    spans: key -> where the type and the value lie, first byte and the one after the last
    """

    version: int
    alignment: int
    part: int
    part_count: int
    metadata: dict[str, Any]
    spans: dict[str, tuple[int, int]]
    tensors: list[TensorInfo]


def quoted(name: str) -> str:
    """A name from a file, safe to print and never long."""
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}…"


def read_header(path: Path, mapped: mmap.mmap) -> Header:
    """Reads the header of the file at `path`, mapped whole. Raises ValueError if it is wrong."""
    cursor = Cursor(path, mapped)
    version = _version(cursor)
    tensor_count = cursor.count("tensor count", smallest=_SMALLEST_TENSOR, limit=MAX_ENTRIES)
    value_count = cursor.count("metadata count", smallest=_SMALLEST_VALUE, limit=MAX_ENTRIES)
    metadata, spans = _metadata(cursor, value_count)
    alignment = _alignment(cursor, metadata)
    part, part_count = _split(cursor, metadata)
    tensors = [_tensor(cursor, i, alignment, part) for i in range(tensor_count)]
    return Header(
        version=version,
        alignment=alignment,
        part=part,
        part_count=part_count,
        metadata=metadata,
        spans=spans,
        tensors=_placed(cursor, tensors, alignment),
    )


def integer(path: Path, metadata: dict[str, Any], key: str, default: int | None = None) -> int:
    """metadata[key], which must be an integer of any width, or `default`."""
    value = metadata.get(key, default)
    if type(value) is not int:  # a bool is no count
        found = "nothing" if value is None else f"a value of type {type(value).__name__}"
        raise failure(path, f"metadata {key!r}", found, "an integer")
    return value


def _version(cursor: Cursor) -> int:
    start = cursor.mapped[:32]
    if start[:4] != b"GGUF":
        cursor.fail("magic", _foreign(start), "b'GGUF'")
    cursor.position = 4
    version = cursor.u32("version")
    if version and version & 0xFFFF == 0:
        cursor.fail("byte order", "a big-endian file", "little-endian")
    if version not in (2, 3):
        cursor.fail("version", str(version), "2 or 3")
    return version


def _foreign(start: bytes) -> str:
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            return what
    if start[8:9] == b"{":
        return "a safetensors file"
    return repr(start[:4])


def _metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The values, and where they lie."""
    metadata: dict[str, Any] = {}
    spans = {}
    for i in range(count):
        key = cursor.name(f"metadata key {i}")
        if key in metadata:
            cursor.fail(f"metadata key {i}", f"a second {quoted(key)}", "every key once")
        is_used, start = key.startswith(_TEXT), cursor.position
        metadata[key] = cursor.value(f"metadata {quoted(key)}", "strict" if is_used else "replace")
        spans[key] = start, cursor.position
    return metadata, spans


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = integer(cursor.path, metadata, "general.alignment", 32)
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        expected = f"a power of two up to {MAX_ALIGNMENT}"
        cursor.fail("metadata 'general.alignment'", str(alignment), expected)
    return alignment


def _split(cursor: Cursor, metadata: dict[str, Any]) -> tuple[int, int]:
    count = integer(cursor.path, metadata, "split.count", 0)
    if count < 2:  # writers also put 0 or 1 into files that are whole
        return 0, 1
    part = integer(cursor.path, metadata, "split.no")
    if not 0 <= part < count <= 99_999:
        cursor.fail("metadata 'split.no'", f"part {part} of {count}", "0 up to the count")
    return part, count


def _tensor(cursor: Cursor, index: int, alignment: int, part: int) -> TensorInfo:
    """A tensor whose `offset` still counts from the start of the data."""
    name = cursor.name(f"tensor {index}: name")
    field = f"tensor {quoted(name)}"
    n_dims = cursor.u32(f"{field}: dimensions")
    if not 1 <= n_dims <= 4:
        cursor.fail(f"{field}: dimensions", str(n_dims), "1 to 4")
    shape = tuple(cursor.u64(f"{field}: dimension {i}") for i in range(n_dims))[::-1]
    if not all(0 < n <= MAX_DIMENSION for n in shape):
        cursor.fail(f"{field}: shape", str(shape), f"dimensions from 1 to {MAX_DIMENSION}")
    kind = cursor.u32(f"{field}: type")
    if kind in REMOVED:
        name, instead = REMOVED[kind]
        found = f"{kind}, {name}, a type that ggml has removed"
        cursor.fail(f"{field}: type", found, f"the model's {instead} file instead")
    if kind not in TYPES:
        cursor.fail(f"{field}: type", f"{kind}", f"a ggml type, one of {sorted(TYPES)}")
    block = TYPES[kind]
    if shape[-1] % block.weights:
        expected = f"a multiple of {block.weights} for {block.name}"
        cursor.fail(f"{field}: row length", str(shape[-1]), expected)
    nbytes = math.prod(shape[:-1]) * block.row_bytes(shape[-1])
    offset = cursor.u64(f"{field}: offset")
    if offset % alignment:
        cursor.fail(f"{field}: offset", str(offset), f"a multiple of the alignment, {alignment}")
    return TensorInfo(name, block.name, shape, part, offset, nbytes)


def _placed(cursor: Cursor, tensors: list[TensorInfo], alignment: int) -> list[TensorInfo]:
    """The tensors with offsets from the start of the file, inside it and apart from each other."""
    base, size = -(-cursor.position // alignment) * alignment, len(cursor.mapped)
    placed = [
        TensorInfo(t.name, t.type, t.shape, t.part, base + t.offset, t.nbytes) for t in tensors
    ]
    taken_by, taken = "", base
    for t in sorted(placed, key=lambda t: t.offset):
        field, stop = f"tensor {quoted(t.name)}: data", t.offset + t.nbytes
        if stop > size:
            needed = max(t.offset + t.nbytes for t in placed)
            expected = f"{needed}, where the last tensor ends (is the download complete?)"
            cursor.fail(field, f"a file truncated at {size} bytes", expected)
        if t.offset < taken:
            expected = f"{taken} or more, where {taken_by} ends"
            cursor.fail(field, f"bytes from {t.offset}", expected)
        taken_by, taken = quoted(t.name), stop
    return placed
