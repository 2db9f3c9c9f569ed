r"""How a text is cut into words before byte-pair merging: steps, each cutting the pieces of the one before.

In a step's expression `\p{L}`, `\p{N}` … stand inside brackets for a class of unicode.py. Python's `re` runs
on stand-in text of the same length, so the classes do not depend on the Unicode version of any library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

from .unicode import CLASSES, collapse, plain_spaces


class Step(Protocol):
    """One cutting rule."""

    @property
    def classes(self) -> bool:
        """Whether it reads text with stand-ins for classes, or only with plain white space."""

    def cuts(self, text: str, start: int, end: int) -> Iterator[int]:
        """Positions in [start, end] at which to cut text[start:end]."""


@dataclass(frozen=True)
class Pattern:
    """Cuts before and after each match: matches and the gaps between them are words."""

    expression: str

    @property
    def classes(self) -> bool:
        return r"\p{" in self.expression

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        expression = self.expression
        for name, members in CLASSES.items():
            expression = expression.replace(rf"\p{{{name}}}", members)
        return re.compile(expression, re.ASCII)

    def cuts(self, text: str, start: int, end: int) -> Iterator[int]:
        for match in self._compiled.finditer(text, start, end):
            yield match.start()
            yield match.end()


@dataclass(frozen=True)
class TrailingSpace:
    """Cuts before the white space at the end of a piece (an expression would take quadratic time)."""

    classes: bool = False

    def cuts(self, text: str, start: int, end: int) -> Iterator[int]:
        yield start + len(text[start:end].rstrip(" \t\n\v\f\r"))


@dataclass(frozen=True)
class DigitGroups:
    """Cuts runs of digits of class N into threes from the right; the first group joins what precedes it."""

    classes: bool = True

    def cuts(self, text: str, start: int, end: int) -> Iterator[int]:
        for match in re.finditer(f"[{CLASSES['N']}]+", text[start:end]):
            size = match.end() - match.start()
            yield from range(start + match.start() + (size % 3 or 3), start + match.end() + 1, 3)


@dataclass(frozen=True)
class AsciiDigitGroups:
    """Cuts before each group of three, from the right, in runs of 0-9."""

    classes: bool = False

    def cuts(self, text: str, start: int, end: int) -> Iterator[int]:
        for match in re.finditer("[0-9]+", text[start:end]):
            size = match.end() - match.start()
            yield from range(start + match.start() + size % 3, start + match.end(), 3)


def split(text: str, steps: tuple[Step, ...]) -> list[str]:
    """The words of a text under the steps, in order; joined they are the text again."""
    stand_ins: dict[bool, str] = {}
    bounds = [0, len(text)]
    for step in steps:
        if step.classes not in stand_ins:
            stand_ins[step.classes] = (collapse if step.classes else plain_spaces)(text)
        cut = set(bounds)
        for start, end in pairwise(bounds):
            cut.update(step.cuts(stand_ins[step.classes], start, end))
        bounds = sorted(cut)
    return [text[start:end] for start, end in pairwise(bounds)]
