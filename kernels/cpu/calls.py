"""ctypes structs, made from the layout that a library describes (describe.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import Any

_TYPES: dict[tuple[str, int], Any] = {
    ("p", ctypes.sizeof(c_void_p)): c_void_p,
    ("f", 4): c_float,
    ("i", 4): c_int32,
    ("i", 8): c_int64,
}


def structs(text: str) -> dict[str, type[Structure]]:
    """The structs of a description, by name and in its order.

    Raises ValueError for a field that ctypes cannot lay out in the same way.
    """
    made = {}
    for name, size, fields in _described(text):
        struct = type(
            name, (Structure,), {"_fields_": [(f, _type(f, k, n)) for f, k, _, n in fields]}
        )
        found = [(getattr(struct, f).offset, getattr(struct, f).size) for f, *_ in fields]
        wanted = [(offset, nbytes) for *_, offset, nbytes in fields]
        if found != wanted or ctypes.sizeof(struct) != size:
            raise ValueError(f"struct {name}: laid out as {found}, expected {wanted}")
        made[name] = struct
    return made


def _described(text: str) -> Iterator[tuple[str, int, list[tuple[str, str, int, int]]]]:
    """Name, size and fields (name, kind, offset, size) of each struct."""
    name, size, fields = "", 0, list[tuple[str, str, int, int]]()
    for line in text.splitlines():
        full, kind, offset, nbytes = line.split()
        if kind == "s":
            if name:
                yield name, size, fields
            name, size, fields = full, int(nbytes), []
        else:
            fields.append((full.partition(".")[2], kind, int(offset), int(nbytes)))
    if name:
        yield name, size, fields


def _type(name: str, kind: str, size: int) -> Any:
    found = _TYPES.get((kind, size))
    if found is None:
        raise ValueError(f"field {name}: no type of kind {kind!r} and {size} bytes")
    return found
