"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class StopStrings:
    """Passes text on up to the first stop string and holds back what may be the start of one.

    The stop string that is complete first ends the text, and of several that end at the same
    character the longest; so the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: str | Sequence[str] | None = None) -> None:
        """stops: one string or several; None is none. Raises ValueError for another type, or "" among them."""
        self.stops = _strings(stops)
        self.found: str | None = None
        self._held = ""

    def add(self, text: str) -> str:
        """Take the next piece; return the text that is now certain (possibly "")."""
        if self.found is not None:
            return ""
        if not self.stops:
            return text
        text = self._held + text
        ends = [(at + len(stop), -len(stop)) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            end, length = min(ends)
            self.found, self._held = text[end + length : end], ""
            return text[: end + length]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text still held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _strings(stops: Any) -> list[str]:
    if stops is None:
        return []
    if isinstance(stops, bytes) or not isinstance(stops, Iterable):
        raise ValueError(f"stop is {stops!r}, expected a string or a list of strings")
    strings = [stops] if isinstance(stops, str) else list(stops)
    for stop in strings:
        if not isinstance(stop, str):
            raise ValueError(f"a stop string is {stop!r}, expected a string")
        if not stop:
            raise ValueError("a stop string is empty, expected at least one character")
    return strings


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
