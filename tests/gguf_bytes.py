"""GGUF files written byte by byte, right or wrong on purpose. Knows nothing of the reader.

`Draft` gives the bytes of a file and where its numbers lie, so that tests can damage each of them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
FORMATS |= {U64: "Q", I64: "q", F64: "d"}


@dataclass(frozen=True)
class Tensor:
    """dims: as in the file, row length first; offset: from the start of the data, None: the next."""

    name: str | bytes
    dims: Sequence[int] = (32,)
    kind: int = 0
    data: bytes = bytes(128)
    offset: int | None = None


@dataclass
class Draft:
    """Values are (key, type, value); the value of an array is (element type, items)."""

    values: Sequence[tuple[str | bytes, int, Any]] = ()
    tensors: Sequence[Tensor] = ()
    version: int = 3
    alignment: int = 32
    raw: bytearray = field(default_factory=bytearray)
    numbers: list[tuple[int, int]] = field(default_factory=list)  # (position, size) of each

    def __post_init__(self) -> None:
        """Writes the file: `raw`, with every header number's place in `numbers`."""
        self.raw += b"GGUF"
        self._number("I", self.version)
        self._number("Q", len(self.tensors))
        self._number("Q", len(self.values))
        for key, kind, value in self.values:
            self._string(key)
            self._number("I", kind)
            self._value(kind, value)
        self._tensors()

    def _tensors(self) -> None:
        data = bytearray()
        for tensor in self.tensors:
            data += bytes(-len(data) % self.alignment)
            self._string(tensor.name)
            self._number("I", len(tensor.dims))
            for dim in tensor.dims:
                self._number("Q", dim)
            self._number("I", tensor.kind)
            self._number("Q", len(data) if tensor.offset is None else tensor.offset)
            data += tensor.data
        self.raw += bytes(-len(self.raw) % self.alignment) + data

    def _number(self, code: str, value: float) -> None:
        packed = struct.pack("<" + code, value)
        self.numbers.append((len(self.raw), len(packed)))
        self.raw += packed

    def _string(self, text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self._number("Q", len(raw))
        self.raw += raw

    def _value(self, kind: int, value: Any) -> None:
        if kind == STRING:
            self._string(value)
        elif kind == ARRAY:
            element, items = value
            self._number("I", element)
            self._number("Q", len(items))
            for item in items:
                self._value(element, item)
        else:
            self._number(FORMATS.get(kind, "B"), value)
