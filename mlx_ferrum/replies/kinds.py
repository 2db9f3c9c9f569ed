"""Which types of JSON a schema allows. A schema may be anything: what is not understood allows all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = frozenset(("null", "boolean", "number", "string", "array", "object"))
TEXT = frozenset(("string",))
_DEPTH = 50  # of schemas in schemas
_OF_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
}


def kind_of(value: Any) -> str:
    """The type of a JSON value, one of KINDS."""
    return _OF_TYPES.get(type(value), "object")


def listed(schema: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a schema; an empty one if it is absent or of another type."""
    value = schema.get(name)
    return value if isinstance(value, list) else []


def referred(reference: Any, root: Any) -> Any:
    """What a `$ref` such as "#/$defs/node" points to in a schema; None if nothing is there."""
    path = reference.split("/") if isinstance(reference, str) else [""]
    found = root if path[0] == "#" else None
    for step in path[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(key)] if key.isdecimal() and int(key) < len(found) else None
        else:
            found = found.get(key) if isinstance(found, Mapping) else None
    return found


class Kinds:
    """The types that values may have, as far as types, values and alternatives of schemas tell.

    root: what `$ref` points into
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[str, frozenset[str]] = {}  # of references

    def of(self, schema: Any, depth: int = 0) -> frozenset[str]:
        """Of a schema: some of KINDS. depth: schemas around it."""
        if not isinstance(schema, Mapping) or depth > _DEPTH:
            return KINDS
        found = self._referred(schema.get("$ref"), depth) & _named(schema.get("type"))
        if "const" in schema:
            found &= {kind_of(schema["const"])}
        if isinstance(schema.get("enum"), list):
            found &= frozenset(map(kind_of, schema["enum"]))
        for each in listed(schema, "allOf"):
            found &= self.of(each, depth + 1)
        for name in ("anyOf", "oneOf"):
            if alternatives := listed(schema, name):
                found &= frozenset().union(*(self.of(each, depth + 1) for each in alternatives))
        return found

    def _referred(self, reference: Any, depth: int) -> frozenset[str]:
        if not isinstance(reference, str):
            return KINDS
        if reference not in self._known:
            self._known[reference] = KINDS  # where it refers to itself
            self._known[reference] = self.of(referred(reference, self._root), depth + 1)
        return self._known[reference]


def _named(types: Any) -> frozenset[str]:
    """Of the keyword `type`."""
    names = [types] if isinstance(types, str) else types
    if not isinstance(names, list):
        return KINDS
    return frozenset("number" if name == "integer" else str(name) for name in names) & KINDS
