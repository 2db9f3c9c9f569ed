"""Gemma: `call:NAME{key:value,…}` between tokens, keys bare, strings between tokens of their own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from .calls import Calls
from .source import MalformedError, Reading, Source

_LONGEST = 256  # characters of a name or key
_DEPTH = 100
_BARE = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")


@dataclass(frozen=True)
class Gemma:
    """The tokens of a version.

    start, end: around a call
    quote: around a string
    """

    start: str
    end: str
    quote: str

    def read(self, source: Source, calls: Calls, _: str) -> Reading[None]:
        """A call behind its marker."""
        yield from source.literal("call:")
        name = yield from source.until("{", _LONGEST)
        yield calls.begin(name.strip())
        yield from self._object(source, calls, 0)
        yield from source.literal(self.end)
        calls.close()

    def _object(self, source: Source, calls: Calls, depth: int) -> Reading[None]:
        """An object behind its brace."""
        yield calls.arguments("{")
        yield from source.space()
        is_empty = yield from source.skips("}")
        while not is_empty:
            yield from source.space()
            if (yield from source.skips(self.quote)):
                key = yield from source.until(self.quote)
                yield from source.literal(":")
            else:
                key = yield from source.until(":", _LONGEST)
            yield calls.arguments(json.dumps(key, ensure_ascii=False) + ": ")
            yield from self._value(source, calls, depth + 1)
            if (yield from self._is_last(source, "}")):
                break
            yield calls.arguments(", ")
        yield calls.arguments("}")

    def _array(self, source: Source, calls: Calls, depth: int) -> Reading[None]:
        """An array behind its bracket."""
        yield calls.arguments("[")
        yield from source.space()
        is_empty = yield from source.skips("]")
        while not is_empty:
            yield from self._value(source, calls, depth + 1)
            if (yield from self._is_last(source, "]")):
                break
            yield calls.arguments(", ")
        yield calls.arguments("]")

    def _is_last(self, source: Source, closing: str) -> Reading[bool]:
        yield from source.space()
        mark = yield from source.next()
        if mark not in (",", closing):
            raise MalformedError
        return mark == closing

    def _value(self, source: Source, calls: Calls, depth: int) -> Reading[None]:
        if depth > _DEPTH:
            raise MalformedError
        yield from source.space()
        if (yield from source.skips(self.quote)):
            yield calls.arguments('"')
            yield from source.stream(
                self.quote,
                lambda part: calls.arguments(json.dumps(part, ensure_ascii=False)[1:-1]),
            )
            yield calls.arguments('"')
        elif (yield from source.skips("{")):
            yield from self._object(source, calls, depth)
        elif (yield from source.skips("[")):
            yield from self._array(source, calls, depth)
        else:
            yield from self._bare(source, calls)

    def _bare(self, source: Source, calls: Calls) -> Reading[None]:
        """A number or a word."""
        start = source.at
        while (yield from source.peek()) and source.text[source.at] not in ",]} \n":
            source.at += 1
        word = source.text[start : source.at]
        if not _BARE.fullmatch(word):
            raise MalformedError
        yield calls.arguments(word)


GEMMA4 = Gemma("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = Gemma("<start_function_call>", "<end_function_call>", "<escape>")
