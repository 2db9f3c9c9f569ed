"""The text of a reply as it comes, read by generators that yield None where they need more of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from .pieces import Piece

T = TypeVar("T")
Reading = Generator[Piece | None, None, T]


class MalformedError(Exception):
    """The text is not what a format expects there."""


class Source:
    """Text and the position in it.

    text: all that came and may still be needed
    at: the next character to read
    mark: where the tool call begins that is being read
    is_over: whether no more will come
    """

    def __init__(self) -> None:
        self.text, self.at, self.mark, self.is_over = "", 0, 0, False

    def forget(self) -> None:
        """Drop what has been read."""
        self.text, self.at, self.mark = self.text[self.at :], 0, 0

    def peek(self) -> Reading[str]:
        """The next character, "" at the end; it is not taken."""
        while len(self.text) == self.at and not self.is_over:
            yield None
        return self.text[self.at : self.at + 1]

    def next(self) -> Reading[str]:
        """Take a character. Raises MalformedError at the end."""
        found = yield from self.peek()
        if not found:
            raise MalformedError
        self.at += 1
        return found

    def skips(self, expected: str) -> Reading[bool]:
        """Take this text if it comes next; whether it did."""
        while not self.text.startswith(expected, self.at):
            if self.is_over or not expected.startswith(self.text[self.at :]):
                return False
            yield None
        self.at += len(expected)
        return True

    def literal(self, expected: str) -> Reading[None]:
        """Take this text. Raises MalformedError for any other."""
        if not (yield from self.skips(expected)):
            raise MalformedError

    def space(self) -> Reading[None]:
        """Take white space."""
        while (yield from self.peek()).isspace():
            self.at += 1

    def until(self, end: str, most: int = 1 << 30) -> Reading[str]:
        """Take the text before `end`, and `end`. Raises MalformedError if it does not come in `most` characters."""
        while (found := self.text.find(end, self.at)) < 0:
            if self.is_over or len(self.text) - self.at >= most + len(end):
                raise MalformedError
            yield None
        if found - self.at > most:
            raise MalformedError
        taken, self.at = self.text[self.at : found], found + len(end)
        return taken

    def stream(self, end: str, made: Callable[[str], Piece]) -> Reading[None]:
        """Take the text before `end`, and `end`; yields what `made` makes of its parts.

        Raises MalformedError if it does not come.
        """
        while (found := self.text.find(end, self.at)) < 0:
            stop = len(self.text) - (0 if self.is_over else held(self.text, self.at, [end]))
            if stop > self.at:
                part, self.at = self.text[self.at : stop], stop
                yield made(part)
            if self.is_over:
                raise MalformedError
            yield None
        part, self.at = self.text[self.at : found], found + len(end)
        if part:
            yield made(part)


def held(text: str, start: int, markers: list[str]) -> int:
    """How many characters at the end of text[start:] may be the beginning of a marker."""
    longest = max(map(len, markers), default=1) - 1
    for count in range(min(longest, len(text) - start), 0, -1):
        tail = text[len(text) - count :]
        if any(marker.startswith(tail) for marker in markers):
            return count
    return 0
