"""Qwen3-Coder: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>`.

Values are plain text where the tool's schema allows only strings; else JSON, or plain text that is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .calls import Calls
from .hermes import end
from .kinds import KINDS, TEXT, Kinds, kind_of
from .source import Reading, Source

FUNCTION = "<function="
_PARAMETER, _VALUE_END, _FUNCTION_END = "<parameter=", "</parameter>", "</function>"
_LONGEST = 256  # characters of a name
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}


def read(source: Source, calls: Calls, marker: str) -> Reading[None]:
    """A call behind `<tool_call>`, which some models leave out, or behind `<function=`."""
    if marker != FUNCTION:
        yield from source.space()
        yield from source.literal(FUNCTION)
    name = yield from source.until(">", _LONGEST)
    yield calls.begin(name)
    schema = calls.tools[name]
    yield calls.arguments("{")
    before = ""
    while True:
        yield from source.space()
        if (yield from source.skips(_FUNCTION_END)):
            break
        yield from source.literal(_PARAMETER)
        key = yield from source.until(">", _LONGEST)
        yield calls.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        yield from _value(source, calls, _kinds(schema, key))
        before = ", "
    yield calls.arguments("}")
    calls.close()
    yield from end(source)


def _kinds(schema: Mapping[str, Any], key: str) -> frozenset[str]:
    """The types that a parameter may have."""
    properties = schema.get("properties")
    return Kinds(schema).of(properties.get(key)) if isinstance(properties, Mapping) else KINDS


def _value(source: Source, calls: Calls, allowed: frozenset[str]) -> Reading[None]:
    """A value and its closing tag; the line breaks next to the tags are no part of it."""
    yield from source.skips("\n")
    if allowed != TEXT:
        text = yield from source.until(_VALUE_END)
        yield calls.arguments(_encoded(text.removesuffix("\n"), allowed))
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


def _encoded(text: str, allowed: frozenset[str]) -> str:
    """The JSON that the text is; a string where it is none, or of a type that may not be while a string may."""
    word = text.strip()
    word = _WORDS.get(word.lower(), word)
    try:
        kind = kind_of(json.loads(word, parse_constant=_refuse))
    except (ValueError, RecursionError):
        kind = ""
    is_text = not kind or (kind not in allowed and "string" in allowed)
    return json.dumps(text, ensure_ascii=False) if is_text else word


def _refuse(name: str) -> Any:
    """Python's reader knows NaN, JSON does not."""
    raise ValueError(name)
