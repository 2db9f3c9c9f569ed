"""Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each call."""

from __future__ import annotations

from .calls import Calls
from .json_text import read_call, stream_json
from .source import MalformedError, Reading, Source

START = "[TOOL_CALLS]"
ARGUMENTS, ID = "[ARGS]", "[CALL_ID]"
_LONGEST = 256  # characters of a name and an id


def read(source: Source, calls: Calls, _: str) -> Reading[None]:
    """Calls behind a marker."""
    yield from source.space()
    if not (yield from source.skips("[")):
        yield from _named(source, calls)
        return
    while True:
        yield from source.space()
        yield from read_call(source, calls)
        yield from source.space()
        mark = yield from source.next()
        if mark == "]":
            source.mark = source.at
            return
        if mark != ",":
            raise MalformedError


def _named(source: Source, calls: Calls) -> Reading[None]:
    name = yield from source.until(ARGUMENTS, _LONGEST)
    name, _, id = name.partition(ID)
    yield from source.space()
    if (yield from source.peek()) != "{":
        raise MalformedError
    yield calls.begin(name.strip(), id.strip() or None)
    yield from stream_json(source, calls)
    calls.close()
