"""Llama 3: a reply that is `{"name": …, "parameters": {…}}`, or `<|python_tag|>` and a call in JSON or Python."""

from __future__ import annotations

import json

from .calls import Calls
from .json_text import read_call, read_json
from .source import MalformedError, Reading, Source

PYTHON_TAG = "<|python_tag|>"
_CODE = ("python", "ipython", "code_interpreter")  # tools that take code


def read(source: Source, calls: Calls, marker: str) -> Reading[None]:
    """Calls, of which JSON ones may follow one another behind a semicolon."""
    if marker == "{":
        source.at -= 1  # a part of the call
    yield from source.space()
    while (yield from source.peek()) == "{":
        yield from read_call(source, calls)
        start = source.at
        yield from source.space()
        if not (yield from source.skips(";")):
            source.at = start
            return
        yield from source.space()
    yield from _python(source, calls)


def _python(source: Source, calls: Calls) -> Reading[None]:
    """`name.call(key=value, …)` of a tool, else code for the tool that takes code."""
    start = source.at
    tool = next((name for name in sorted(calls.tools) if name in _CODE), None)
    try:
        name = yield from source.until(".call(", 128)
        if name not in calls.tools:
            raise MalformedError
        arguments = yield from _keywords(source)
    except MalformedError:
        if tool is None:
            raise
        source.at = start
        yield calls.begin(tool)
        yield calls.arguments('{"code": "')
        while True:
            part, source.at = source.text[source.at :], len(source.text)
            yield calls.arguments(json.dumps(part, ensure_ascii=False)[1:-1])
            if source.is_over:
                break
            yield None
        yield calls.arguments('"}')
    else:
        yield calls.begin(name)
        yield calls.arguments(json.dumps(arguments, ensure_ascii=False))
    calls.close()


def _keywords(source: Source) -> Reading[dict[str, object]]:
    """`key=value, …)` with values in JSON."""
    found: dict[str, object] = {}
    if (yield from source.skips(")")):
        return found
    while True:
        key = yield from source.until("=", 128)
        found[key.strip()] = yield from read_json(source)
        yield from source.space()
        mark = yield from source.next()
        if mark == ")":
            return found
        if mark != ",":
            raise MalformedError
