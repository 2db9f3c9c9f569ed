"""What a template may use up, and what a value costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VALUE_COST = 16


@dataclass(frozen=True)
class Limits:
    """source: characters of a template. text: characters of a value and of all output.

    steps: loop rounds, calls, operations, and the characters of the literal text of loop bodies and
    macros. seconds: wall time of one rendering.
    """

    source: int = 1 << 17
    text: int = 1 << 24
    steps: int = 1 << 22
    seconds: float = 5.0


class Budget:
    """What one rendering has used; every method raises ValueError when a limit is passed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._steps = self._text = 0
        self._end = time.monotonic() + limits.seconds

    def step(self, count: int = 1) -> None:
        """Count operations, and look at the clock."""
        self._steps += count
        if self._steps > self.limits.steps:
            raise ValueError(f"stopped after {self.limits.steps} steps")
        if time.monotonic() > self._end:
            raise ValueError(f"stopped after {self.limits.seconds} seconds")

    def write(self, text: str) -> str:
        """Count output."""
        self._text += len(text)
        self.check(self._text)
        return text

    def check(self, size: int) -> None:
        """Refuse a size in characters that is too large."""
        if size > self.limits.text:
            raise ValueError(f"text of more than {self.limits.text} characters")

    def measure(self, *values: Any) -> int:
        """Size of values in characters when written out, plus a cost for each value inside.

        A value that appears in several places counts in each, as it would be written in each.
        """
        size, rest = 0, list(values)
        while rest:
            value = rest.pop()
            size += VALUE_COST
            if isinstance(value, (str, bytes)):
                size += len(value)
            elif isinstance(value, Mapping):
                rest += value.keys()
                rest += value.values()
            elif isinstance(value, (list, tuple)):
                rest += value
            elif isinstance(value, int):
                size += value.bit_length() >> 1
            self.check(size + VALUE_COST * len(rest))
        return size
