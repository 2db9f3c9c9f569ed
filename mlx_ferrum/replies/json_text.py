"""JSON as it comes: each character is checked once, and what is right can be passed on at once."""

from __future__ import annotations

import json
import re
from typing import Any

from .calls import Calls
from .source import MalformedError, Reading, Source

_DEPTH = 200
_SPACE = " \t\n\r"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"t": "rue", "f": "alse", "n": "ull"}
_HEX = frozenset("0123456789abcdefABCDEF")


class JsonScanner:
    """Finds the end of one JSON value, or the first character that is wrong.

    is_done: the value is complete; a number is with the character behind it
    is_bad: the next character is wrong
    """

    def __init__(self) -> None:
        self.is_done = self.is_bad = False
        self._step = self._value
        self._open: list[str] = []  # what closes the objects and arrays around
        self._token = ""  # of a number so far, or what is missing of a word
        self._is_key = False
        self._digits = 0

    def scan(self, text: str, at: int) -> int:
        """Read from a position as far as the value goes; the position behind it."""
        while at < len(text) and not self.is_done and not self.is_bad:
            at = self._step(text, at)
        return at

    def _fail(self, at: int) -> int:
        self.is_bad = True
        return at

    def _value(self, text: str, at: int) -> int:
        letter = text[at]
        if letter in _SPACE:
            return at + 1
        if letter in "{[":
            if len(self._open) == _DEPTH:
                return self._fail(at)
            self._open.append("}" if letter == "{" else "]")
            self._step = self._first_key if letter == "{" else self._first_item
        elif letter == '"':
            self._is_key, self._step = False, self._string
        elif letter in "-0123456789":
            self._token, self._step = letter, self._number
        elif letter in _WORDS:
            self._token, self._step = _WORDS[letter], self._word
        else:
            return self._fail(at)
        return at + 1

    def _first_item(self, text: str, at: int) -> int:
        return self._closed(at) if text[at] == "]" else self._value(text, at)

    def _first_key(self, text: str, at: int) -> int:
        return self._closed(at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        if text[at] == '"':
            self._is_key, self._step = True, self._string
        elif text[at] not in _SPACE:
            return self._fail(at)
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._step = self._value
        elif text[at] not in _SPACE:
            return self._fail(at)
        return at + 1

    def _behind(self, text: str, at: int) -> int:
        """Behind a value within others."""
        if text[at] == self._open[-1]:
            return self._closed(at)
        if text[at] == ",":
            self._step = self._key if self._open[-1] == "}" else self._value
        elif text[at] not in _SPACE:
            return self._fail(at)
        return at + 1

    def _closed(self, at: int) -> int:
        self._open.pop()
        self._end()
        return at + 1

    def _end(self) -> None:
        self.is_done, self._step = not self._open, self._behind

    def _string(self, text: str, at: int) -> int:
        if text[at] == '"':
            if self._is_key:
                self._step = self._colon
            else:
                self._end()
            return at + 1
        if text[at] == "\\":
            self._step = self._escape
            return at + 1
        found = _PLAIN.match(text, at)
        return found.end() if found else self._fail(at)

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._digits, self._step = 4, self._unicode
        elif text[at] in '"\\/bfnrt':
            self._step = self._string
        else:
            return self._fail(at)
        return at + 1

    def _unicode(self, text: str, at: int) -> int:
        if text[at] not in _HEX:
            return self._fail(at)
        self._digits -= 1
        if not self._digits:
            self._step = self._string
        return at + 1

    def _word(self, text: str, at: int) -> int:
        if text[at] != self._token[0]:
            return self._fail(at)
        self._token = self._token[1:]
        if not self._token:
            self._end()
        return at + 1

    def _number(self, text: str, at: int) -> int:
        if text[at] in "0123456789.eE+-":
            self._token += text[at]
            return at + 1
        if not _NUMBER.fullmatch(self._token):
            return self._fail(at)
        self._end()
        return at


def read_json(source: Source) -> Reading[Any]:
    """Take a JSON value and decode it. Raises MalformedError."""
    scanner, start = JsonScanner(), source.at
    while True:
        source.at = scanner.scan(source.text, source.at)
        if scanner.is_bad or (source.is_over and not scanner.is_done):
            raise MalformedError
        if scanner.is_done:
            try:
                return json.loads(source.text[start : source.at])
            except ValueError:  # a number of more digits than Python reads
                raise MalformedError from None
        yield None


def stream_json(source: Source, calls: Calls) -> Reading[None]:
    """Take a JSON value as arguments of the call that is open, in pieces. Raises MalformedError."""
    scanner = JsonScanner()
    while not scanner.is_done:
        stop = scanner.scan(source.text, source.at)
        if stop > source.at:
            part, source.at = source.text[source.at : stop], stop
            yield calls.arguments(part)
        if scanner.is_bad or (source.is_over and not scanner.is_done):
            raise MalformedError
        if not scanner.is_done:
            yield None


def read_call(source: Source, calls: Calls) -> Reading[None]:
    """A call as JSON: `{"name": …, "arguments" or "parameters": {…}}`. Raises MalformedError."""
    yield from source.literal("{")
    name = arguments = None
    while True:
        yield from source.space()
        key = yield from read_json(source)
        if not isinstance(key, str):
            raise MalformedError
        yield from source.space()
        yield from source.literal(":")
        yield from source.space()
        is_arguments = key in ("arguments", "parameters")
        is_due = is_arguments and name is not None and not calls.is_open
        if is_due and (yield from source.peek()) == "{":
            yield calls.begin(name)
            yield from stream_json(source, calls)
        else:
            value = yield from read_json(source)
            name = value if key == "name" and name is None else name
            arguments = value if is_arguments else arguments
        yield from source.space()
        mark = yield from source.next()
        if mark == "}":
            break
        if mark != ",":
            raise MalformedError
    if not calls.is_open:
        yield calls.begin(name)
        yield calls.arguments(_object(arguments))
    calls.close()


def _object(value: Any) -> str:
    """Arguments that came before the name, as a string, or not at all: JSON text. Raises MalformedError for others."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise MalformedError from None
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise MalformedError
    return json.dumps(value, ensure_ascii=False)
