"""Compares the ctypes structs of a compiled library with the structs that it was compiled with."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import Structure, c_float, c_void_p
from pathlib import Path
from typing import Any

from .compiler import BuildError

# "Struct" or "Struct.field" -> kind, offset, size in bytes; describe.h has the kinds
Layout = dict[str, tuple[str, int, int]]
_KINDS = {"s": "a struct", "p": "a pointer", "f": "floating point", "i": "an integer"}


def check(loaded: ctypes.CDLL, path: Path, structs: Iterable[type[Structure]], file: str) -> None:
    """Raises BuildError if a struct of the library differs from `structs`, which are those of `file`."""
    loaded.ferrum_layout.restype = ctypes.c_char_p
    found, expected = parse(loaded.ferrum_layout().decode()), layout(structs)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise BuildError(
                f"the CPU kernels in {path} do not fit {file}: {name} is "
                f"{_described(found.get(name))}, expected {_described(expected.get(name))}"
            )


def layout(structs: Iterable[type[Structure]]) -> Layout:
    """The layout of ctypes structs."""
    found: Layout = {}
    for struct in structs:
        found[struct.__name__] = ("s", 0, ctypes.sizeof(struct))
        for name, kind, *_ in struct._fields_:
            field = getattr(struct, name)
            found[f"{struct.__name__}.{name}"] = (_kind(kind), field.offset, field.size)
    return found


def parse(text: str) -> Layout:
    """The layout that a library describes."""
    rows = (line.split() for line in text.splitlines())
    return {name: (kind, int(offset), int(size)) for name, kind, offset, size in rows}


def _kind(kind: Any) -> str:
    element = getattr(kind, "_type_", kind)  # an array's is a type, a plain one's a letter
    element = kind if isinstance(element, str) else element
    return "p" if element is c_void_p else "f" if element is c_float else "i"


def _described(entry: tuple[str, int, int] | None) -> str:
    if entry is None:
        return "missing"
    kind, offset, size = entry
    return f"{_KINDS[kind]} of {size} bytes at offset {offset}"
