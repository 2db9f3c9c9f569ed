"""Strings of a JSON schema where they stand without quotes and escapes: as terminals of lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..replies.kinds import Kinds, listed, referred

ANY = r"/(.|\n)*/"
_MOST = 200  # schemas in one


class Texts:
    """Makes terminals of strings that are valid by values, alternatives, pattern and lengths, but for `format`.

    root: what `$ref` points into
    """

    def __init__(self, root: Any) -> None:
        self._root, self._kinds, self._count = root, Kinds(root), 0

    def terminal(self, schema: Any) -> str:
        """The strings of a schema.

        Raises ValueError for a `$ref` that points nowhere, a length that is none, and too many schemas.
        """
        self._count = 0
        return self._terminal(schema)

    def _terminal(self, schema: Any) -> str:
        self._count += 1
        if self._count > _MOST:
            raise ValueError(f"a schema of strings refers to more than {_MOST} others")
        if not isinstance(schema, Mapping):
            return ANY
        if "const" in schema or isinstance(schema.get("enum"), list):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return _either([_word(value) for value in values if isinstance(value, str)])
        parts = [_regex(schema["pattern"])] if isinstance(schema.get("pattern"), str) else []
        if "minLength" in schema or "maxLength" in schema:
            least, most = whole(schema, "minLength") or 0, whole(schema, "maxLength")
            parts.append(rf"/(.|\n){{{least},{'' if most is None else most}}}/")
        if "$ref" in schema:
            parts.append(self._terminal(found(schema["$ref"], self._root)))
        parts += map(self._terminal, listed(schema, "allOf"))
        for name in ("anyOf", "oneOf"):
            branches = [each for each in listed(schema, name) if "string" in self._kinds.of(each)]
            if branches:
                parts.append(_either(list(map(self._terminal, branches))))
        return f"({' & '.join(parts)})" if parts else ANY


def found(reference: Any, root: Any) -> Any:
    """What a `$ref` points to. Raises ValueError if nothing is there."""
    schema = referred(reference, root)
    if schema is None:
        raise ValueError(f"$ref: {str(reference)[:80]!r} found, expected a place in the schema")
    return schema


def properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The properties of an object; required ones without a schema come last. Raises ValueError for another type."""
    named = schema.get("properties", {})
    if not isinstance(named, Mapping):
        raise ValueError(f"properties: {type(named).__name__} found, expected an object")
    others = (key for key in listed(schema, "required") if isinstance(key, str))
    return {**named, **{key: {} for key in others if key not in named}}


def whole(schema: Mapping[str, Any], name: str) -> int | None:
    """A number of characters or items; None if it is absent. Raises ValueError if it is none."""
    value = schema.get(name)
    if value is None:
        return None
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_whole or value < 0:
        raise ValueError(f"{name}: {str(value)[:80]!r} found, expected a whole number")
    return int(value)


def _word(text: str) -> str:
    return json.dumps(text) if text else "/(.|\\n){0}/"


def _either(terminals: list[str]) -> str:
    return f"({' | '.join(terminals)})"


def _regex(pattern: str) -> str:
    """A pattern, which may match anywhere in a string. Only at its ends can it be anchored."""
    start = end = "(.|\\n)*"
    if pattern.startswith("^"):
        start, pattern = "", pattern[1:]
    if re.search(r"(?<!\\)(\\\\)*\$$", pattern):
        end, pattern = "", pattern[:-1]
    inner = re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", pattern, flags=re.DOTALL)
    escaped = inner.replace("\n", "\\n")
    return f"/{start}(?:{escaped}){end}/"
