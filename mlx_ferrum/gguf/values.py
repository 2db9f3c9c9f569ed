"""Metadata values of a mapped GGUF file: numbers, strings, arrays, each checked before it is read.

Knows nothing of keys or tensors. All is little-endian; a string is a uint64 length and that many
bytes of UTF-8; an array is a uint32 element type, a uint64 count and the elements, which may be
arrays again. Bytes that are not UTF-8 are refused, or become U+FFFD where the caller says so: every str
that leaves here can be encoded.
"""

from __future__ import annotations

import mmap
import operator
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype(np.bool_),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_SMALLEST = {_STRING: 8, _ARRAY: 12}  # bytes of an empty one

# Far above any real header (262,144 tokens and their merges are 16 MB): a hostile one ends soon.
MAX_HEADER_BYTES = 128 << 20
MAX_STRINGS = 1 << 22  # in arrays
MAX_ARRAYS = 1 << 16  # in arrays
MAX_DEPTH = 8
MAX_NAME_BYTES = (1 << 16) - 1


def failure(path: Path, field: str, found: str, expected: str) -> ValueError:
    """The error for a file that is damaged or not what it should be."""
    return ValueError(f"{path}: {field}: found {found}, expected {expected}")


class Strings(Sequence[str]):
    """Strings that stay in the file until asked for; `list(strings)` is the fast way to all."""

    def __init__(self, mapped: mmap.mmap, bounds: np.ndarray, errors: str = "strict") -> None:
        """bounds: (n + 1,) int64; string i is an 8-byte length at bounds[i], then its text.

        errors: of `bytes.decode`
        """
        self._mapped, self._bounds, self._errors = mapped, bounds, errors

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[str]:
        bounds = (self._bounds - self._bounds[0]).tolist()
        text = self._mapped[self._bounds[0] : self._bounds[-1]]
        errors = self._errors
        return iter([text[a + 8 : b].decode(errors=errors) for a, b in pairwise(bounds)])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"string {i} of {len(self)}")
        i %= len(self)
        raw = self._mapped[self._bounds[i] + 8 : self._bounds[i + 1]]
        return raw.decode(errors=self._errors)

    def __repr__(self) -> str:
        return f"Strings({len(self)})"


class Cursor:
    """Reads values one after the other, from the start of a file to at most MAX_HEADER_BYTES.

    Every method raises ValueError, naming `field`, for what the file does not hold or may not hold.
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path, self.mapped, self.position = path, mapped, 0
        self.end = min(len(mapped), MAX_HEADER_BYTES)
        self._left = {_STRING: MAX_STRINGS, _ARRAY: MAX_ARRAYS}
        self._errors = "strict"

    def fail(self, field: str, found: str, expected: str) -> NoReturn:
        """Raises the error that says so."""
        raise failure(self.path, field, found, expected)

    def u32(self, field: str) -> int:
        """The next uint32."""
        return int(_U32.unpack_from(self.mapped, self._advance(4, field))[0])

    def u64(self, field: str) -> int:
        """The next uint64."""
        return int(_U64.unpack_from(self.mapped, self._advance(8, field))[0])

    def count(self, field: str, *, smallest: int, limit: int) -> int:
        """A count of things of at least `smallest` bytes each, which must fit in what is left."""
        count = self.u64(field)
        room = (self.end - self.position) // smallest
        fitting = min(room, limit)
        if count > fitting:
            hint = " in the rest of the file (is the download complete?)" if room < limit else ""
            self.fail(field, f"a count of {count}", f"at most {fitting}{hint}")
        return count

    def name(self, field: str) -> str:
        """A key or a tensor's name: a string of 1 to 65,535 bytes."""
        text = self._string(field, limit=MAX_NAME_BYTES)
        if not text:
            self.fail(field, "an empty name", "at least one byte")
        return text

    def value(self, field: str, errors: str = "strict") -> Any:
        """A type and the value after it: int, float, bool, str, or what `_array` returns.

        errors: "strict" refuses text that is not UTF-8, "replace" puts U+FFFD there
        """
        kind = self.u32(f"{field}: type")
        self._errors = errors
        try:
            if kind == _STRING:
                return self._string(field, limit=MAX_HEADER_BYTES)
            if kind == _ARRAY:
                return self._array(field, depth=1)
            return self._numbers(kind, 1, field)[0].item()
        finally:
            self._errors = "strict"

    def _array(self, field: str, depth: int) -> np.ndarray | Strings | list[Any]:
        """Numbers as an aligned read-only ndarray, strings as Strings, arrays as a list."""
        if depth > MAX_DEPTH:
            self.fail(field, f"arrays nested {depth} deep", f"at most {MAX_DEPTH}")
        kind = self.u32(f"{field}: element type")
        smallest = _SMALLEST.get(kind) or self._dtype(kind, field).itemsize
        limit = self._left.get(kind, MAX_HEADER_BYTES)
        count = self.count(f"{field}: length", smallest=smallest, limit=limit)
        if kind in self._left:
            self._left[kind] -= count
        if kind == _STRING:
            return self._strings(count, field)
        if kind == _ARRAY:
            return [self._array(f"{field}[{i}]", depth + 1) for i in range(count)]
        return self._numbers(kind, count, field)

    def _numbers(self, kind: int, count: int, field: str) -> np.ndarray:
        dtype = self._dtype(kind, field)
        start = self._advance(count * dtype.itemsize, field)
        if kind == _BOOL:
            codes = np.frombuffer(self.mapped, np.uint8, count, start)
            if codes.size and codes.max() > 1:
                self.fail(field, f"a boolean of {codes.max()}", "0 or 1")
        numbers = np.require(np.frombuffer(self.mapped, dtype, count, start), requirements="A")
        numbers.flags.writeable = False  # an unaligned array was copied
        return numbers

    def _string(self, field: str, *, limit: int) -> str:
        length = self.u64(f"{field}: length")
        if length > limit:
            self.fail(f"{field}: length", f"{length} bytes", f"at most {limit}")
        start = self._advance(length, field)
        raw = self.mapped[start : self.position]
        try:
            return raw.decode(errors=self._errors)
        except UnicodeDecodeError as error:
            self.fail(field, f"byte 0x{raw[error.start]:02x} at {start + error.start}", "UTF-8")

    def _strings(self, count: int, field: str) -> Strings:
        unpack, mapped, end, position = _U64.unpack_from, self.mapped, self.end, self.position
        bounds = array("q", [position])
        append = bounds.append
        for i in range(count):
            if position + 8 > end:
                self.position = position
                self._advance(8, f"{field}[{i}]: length")
            position += 8 + unpack(mapped, position)[0]
            if position > end:
                self.position = bounds[-1] + 8
                self._advance(position - self.position, f"{field}[{i}]")
            append(position)
        self.position = position
        strings = np.frombuffer(bounds, np.int64)
        if self._errors == "strict":
            self._check_text(strings, field)
        return Strings(mapped, strings, self._errors)

    def _check_text(self, bounds: np.ndarray, field: str) -> None:
        """With every length zeroed, the whole is UTF-8 exactly if each string is."""
        first, last = int(bounds[0]), int(bounds[-1])
        text = np.frombuffer(self.mapped, np.uint8, last - first, first).copy()
        starts = bounds[:-1] - first
        for i in range(8):
            text[starts + i] = 0
        try:
            text.tobytes().decode()
        except UnicodeDecodeError as error:
            index = int(np.searchsorted(starts, error.start, side="right")) - 1
            found = f"byte 0x{text[error.start]:02x} at {first + error.start}"
            self.fail(f"{field}[{index}]", found, "UTF-8")

    def _dtype(self, kind: int, field: str) -> np.dtype:
        if kind not in _NUMBERS:
            self.fail(f"{field}: type", f"{kind}", "a GGUF value type, 0 to 12")
        return _NUMBERS[kind]

    def _advance(self, size: int, field: str) -> int:
        """Steps over `size` bytes that are there; returns where they begin."""
        start, left = self.position, self.end - self.position
        if size > left:
            is_all = self.end == len(self.mapped)
            limit = "file ends there, truncated?" if is_all else "longest header read ends there"
            self.fail(field, f"{size} bytes at {start}", f"at most {left}: the {limit}")
        self.position = start + size
        return start
