"""Metadata values: how people write them, and their bytes in a GGUF file."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np

from mlx_ferrum.gguf import Strings

Kind = gguf.GGUFValueType
FORMATS = {
    Kind.UINT8: "B",
    Kind.INT8: "b",
    Kind.UINT16: "H",
    Kind.INT16: "h",
    Kind.UINT32: "I",
    Kind.INT32: "i",
    Kind.FLOAT32: "f",
    Kind.BOOL: "?",
    Kind.UINT64: "Q",
    Kind.INT64: "q",
    Kind.FLOAT64: "d",
}
FLOATS = (Kind.FLOAT32, Kind.FLOAT64)
NAMES = {kind.name.lower(): kind for kind in (*FORMATS, Kind.STRING)}
SHORT = {"u": "uint", "i": "int", "f": "float"}  # u32 is uint32, as llama.cpp prints it


def pack(value: Any, kind: Kind, element: Kind | None = None) -> bytes:
    """The type and the value as a GGUF file has them.

    element: the type of an array's elements; found by their Python types where it is None
    Raises ValueError for a value that the type does not hold.
    """
    return struct.pack("<I", kind) + _value(value, kind, element)


def _value(value: Any, kind: Kind, element: Kind | None) -> bytes:
    if kind == Kind.STRING:
        text = value.encode() if isinstance(value, str) else value
        if not isinstance(text, bytes | bytearray | memoryview):
            raise ValueError(f"{value!r} is not a value of type string")
        return struct.pack("<Q", len(text)) + bytes(text)
    if kind == Kind.ARRAY:
        return _array(value, element)
    try:
        return struct.pack("<" + FORMATS[kind], value)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{value!r} is not a value of type {kind.name.lower()}") from error


def _array(items: Sequence[Any] | np.ndarray, element: Kind | None) -> bytes:
    if element is None:
        if not len(items):
            raise ValueError("an empty array: expected the type of its elements")
        element = Kind.get_type(items[0])
    head = struct.pack("<IQ", element, len(items))
    if element not in FORMATS:
        return head + b"".join(_value(item, element, None) for item in items)
    try:
        return head + struct.pack(f"<{len(items)}{FORMATS[element]}", *items)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"an array that is not of type {element.name.lower()}") from error


def unpack_kind(raw: bytes) -> tuple[Kind, Kind | None]:
    """The type, and that of an array's elements, at the start of a value's bytes."""
    kind = Kind(struct.unpack_from("<I", raw)[0])
    if kind != Kind.ARRAY:
        return kind, None
    return kind, Kind(struct.unpack_from("<I", raw, 4)[0])


def kind_name(kind: Kind, element: Kind | None) -> str:
    """A type as --set takes it: uint32, string, float32[]."""
    return kind.name.lower() if element is None else f"{element.name.lower()}[]"


def parse_kind(name: str) -> tuple[Kind, Kind | None]:
    """The inverse of `kind_name`; u32 and str are understood too. Raises ValueError for other names."""
    plain = name.removesuffix("[]").lower()
    plain = {"str": "string", "boolean": "bool"}.get(plain, plain)
    if plain[:1] in SHORT and plain[1:].isdigit():
        plain = SHORT[plain[0]] + plain[1:]
    if plain not in NAMES:
        expected = ", ".join(NAMES)
        raise ValueError(
            f"expected a type, {expected}, or one with [] for an array; found {name!r}"
        )
    found = NAMES[plain]
    return (Kind.ARRAY, found) if name.endswith("[]") else (found, None)


def parse(text: str, kind: Kind, element: Kind | None = None) -> Any:
    """The value that `text` means for a type: an array is JSON, a string is taken as it stands.

    Raises ValueError for text that means none.
    """
    if kind == Kind.STRING:
        return text
    if kind == Kind.ARRAY:
        return _parse_array(text, element)
    if kind == Kind.BOOL:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, found {text!r}")
        return text.lower() == "true"
    try:
        return float(text) if kind in FLOATS else int(text, 0)
    except ValueError:
        raise ValueError(f"expected a number of type {kind.name.lower()}, found {text!r}") from None


def _parse_array(text: str, element: Kind | None) -> list[Any]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or element is None or element == Kind.ARRAY:
        raise ValueError(f"expected a JSON array, such as [1, 2], found {text[:60]!r}")
    wanted = {Kind.STRING: str, Kind.BOOL: bool}.get(element, (int, float))
    for item in items:
        is_bool = isinstance(item, bool) and element != Kind.BOOL
        if not isinstance(item, wanted) or is_bool:
            raise ValueError(f"expected elements of type {element.name.lower()}, found {item!r}")
    return items


def as_list(value: Any) -> Any:
    """A value of the reader as plain Python: arrays and strings of a file become lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, Strings) else value
