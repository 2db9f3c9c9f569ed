"""Qwen3-Coder: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>`.

Values are plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .calls import Calls
from .hermes import end
from .source import Reading, Source

FUNCTION = "<function="
_PARAMETER, _VALUE_END, _FUNCTION_END = "<parameter=", "</parameter>", "</function>"
_LONGEST = 256  # characters of a name
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def read(source: Source, calls: Calls, marker: str) -> Reading[None]:
    """A call behind `<tool_call>`, which some models leave out, or behind `<function=`."""
    if marker != FUNCTION:
        yield from source.space()
        yield from source.literal(FUNCTION)
    name = yield from source.until(">", _LONGEST)
    yield calls.begin(name)
    properties = calls.tools[name].get("properties")
    yield calls.arguments("{")
    before = ""
    while True:
        yield from source.space()
        if (yield from source.skips(_FUNCTION_END)):
            break
        yield from source.literal(_PARAMETER)
        key = yield from source.until(">", _LONGEST)
        yield calls.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        yield from _value(source, calls, schema)
        before = ", "
    yield calls.arguments("}")
    calls.close()
    yield from end(source)


def _value(source: Source, calls: Calls, schema: Any) -> Reading[None]:
    """A value and its closing tag; the line breaks next to the tags are no part of it."""
    yield from source.skips("\n")
    if not _is_text(schema):
        text = yield from source.until(_VALUE_END)
        value = _decoded(text.removesuffix("\n"))
        yield calls.arguments(json.dumps(value, ensure_ascii=False))
        return
    yield calls.arguments('"')
    last = ""  # a line break that may be the last
    for piece in source.stream(_VALUE_END, calls.arguments):
        if piece is None:
            yield None
            continue
        text = last + piece.text
        last = "\n" if text.endswith("\n") else ""
        text = text.removesuffix("\n")
        yield calls.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
    yield calls.arguments('"')


def _is_text(schema: Any) -> bool:
    """Whether a value of this schema may be a string whatever it looks like."""
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    if kind is None and isinstance(schema.get("enum"), list):
        return all(isinstance(value, str) for value in schema["enum"])
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _decoded(text: str) -> Any:
    """The value that the text stands for; what is no JSON stays a string."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> Any:
    """Python's reader knows NaN, JSON does not."""
    raise ValueError(name)
