"""Kernel text made short, because MLX writes all of it anew for every launch.

Comments go, and the declarations of a header that a body does not need. The rest keeps its names, order and lines,
so that the host of the tests can run the very same code with line directives between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|[A-Za-z_]\w*|\.?[0-9](?:[eEpP][+-]|[\w.])*|\S')
_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_LINE = re.compile(r'#line (\d+) "([^"]*)"')
_DEFINE = re.compile(r"\s*#\s*define\s+(\w+)")
_NAME = re.compile(r"[A-Za-z_]\w*")
# Spaces beside a mark; not between two marks, nor where 0xe + 1 would become one number.
_IDLE = re.compile(
    r"(?<=\w) (?=[^\w\s+-])|(?<=[^\WeEpP]) (?=[+-])|(?<=[^\w\s]) (?=\w)|(?<=[(){}\[\],;]) | (?=[(){}\[\],;])"
)
_OPENS, _CLOSES = "([{", ")]}"
_TYPES = ("struct", "class", "union")


class Line(NamedTuple):
    """A line of code without comments, and where it is from."""

    file: str
    number: int
    text: str


@dataclass(frozen=True)
class Declaration:
    """A declaration outside of any braces, or a directive.

    names: that it declares; none if it is always needed
    words: all names in it
    takes: names in a function's parameters
    """

    lines: Sequence[Line]
    names: frozenset[str]
    words: frozenset[str] = frozenset()
    takes: frozenset[str] = frozenset()
    is_type: bool = False


def needed(header: str, body: str) -> list[Line]:
    """The lines of those declarations of a header that a body needs, directly or through others.

    An overload is needed only if other needed text names the types of its parameters, as its callers have values
    of them.
    """
    declarations = list(_declarations(_lines(header)))
    types = {name for d in declarations if d.is_type for name in d.names}
    used = set(_names(_TOKEN.findall(_without_comments(body))))
    kept: set[int] = set()
    while True:
        found = {
            i
            for i, d in enumerate(declarations)
            if i not in kept and (not d.names or d.names & used) and d.takes & types <= used
        }
        if not found:
            return [line for i in sorted(kept) for line in declarations[i].lines]
        kept |= found
        used.update(*(declarations[i].words for i in found))


def with_places(lines: Sequence[Line]) -> str:
    """The text with line directives, so that compilers name the files."""
    out: list[str] = []
    expected = ("", 0)
    for file, number, text in lines:
        if (file, number) != expected:
            out.append(f'#line {number} "{file}"\n')
        out.append(text + "\n")
        expected = (file, number + 1)
    return "".join(out)


def bare(lines: Sequence[Line]) -> str:
    """The text alone."""
    return "".join(line.text + "\n" for line in lines)


def _names(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if _NAME.match(token)]


def _without_comments(text: str) -> str:
    return _COMMENT.sub(lambda found: found[1] or "\n" * found[0].count("\n") or " ", text)


def _lines(text: str) -> Iterator[Line]:
    """Those that hold code."""
    file, number = "header", 0
    for row in _without_comments(text).splitlines():
        number += 1
        if marker := _LINE.match(row):
            file, number = marker[2], int(marker[1]) - 1
        elif row.strip():
            is_directive = row.lstrip().startswith("#")
            squeezed = row.strip() if is_directive else _IDLE.sub("", " ".join(row.split()))
            yield Line(file, number, squeezed)


def _declarations(lines: Iterator[Line]) -> Iterator[Declaration]:
    """One ends with the line that closes its braces, or with a semicolon outside of them."""
    part: list[Line] = []
    depth = 0
    for line in lines:
        if not part and line.text.startswith("#"):
            defines = _DEFINE.match(line.text)
            names = frozenset([defines[1]] if defines else [])
            yield Declaration([line], names, frozenset(_NAME.findall(line.text)))
            continue
        part.append(line)
        depth += sum((c in _OPENS) - (c in _CLOSES) for c in line.text)
        if not depth and line.text.endswith((";", "}")):
            yield _declaration(part)
            part = []
    if part:
        yield Declaration(part, frozenset())


def _declaration(lines: Sequence[Line]) -> Declaration:
    tokens = _TOKEN.findall(" ".join(line.text for line in lines))
    declared = _after_template(tokens)
    names, takes = _declared(declared)
    words = frozenset(_names(tokens))
    return Declaration(lines, frozenset(names), words, frozenset(takes), declared[0] in _TYPES)


def _after_template(tokens: Sequence[str]) -> Sequence[str]:
    depth = 0
    for i, token in enumerate(tokens if tokens[0] == "template" else ()):
        depth += (token == "<") - (token == ">")
        if token == ">" and not depth:
            return tokens[i + 1 :]
    return tokens


def _declared(tokens: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The names that a declaration makes, and those in the parameters of a function."""
    first = tokens[0]
    if first in _TYPES:
        return [tokens[1]], []
    if first == "enum":
        return _names(tokens[1:]), []
    if first == "using":
        return [] if tokens[1] == "namespace" else [tokens[1]], []
    end = _end_of_name(tokens)
    if not end or first == "typedef" or "operator" in tokens[:end]:
        return [], []
    if tokens[end] != "(":
        return [tokens[end - 1]], []
    return [_function(tokens[:end])], _names(tokens[end : _closing(tokens, end)])


def _end_of_name(tokens: Sequence[str]) -> int:
    """Where a declaration's type and name end; 0 if nowhere. Template arguments may hold brackets."""
    brackets = angles = 0
    for i, token in enumerate(tokens):
        if not brackets and not angles and token in ("(", "[", "=", "{", ";"):
            return i
        brackets += (token in _OPENS) - (token in _CLOSES)
        if not brackets:
            angles += (token == "<") - (token == ">")
    return 0


def _function(tokens: Sequence[str]) -> str:
    """The name in what stands before the parameters, also of a specialization, name<2>."""
    end = len(tokens)
    if tokens[-1] == ">":
        end = max(i for i, token in enumerate(tokens) if token == "<")
    return tokens[end - 1]


def _closing(tokens: Sequence[str], start: int) -> int:
    depth = 0
    for i in range(start, len(tokens)):
        depth += (tokens[i] in _OPENS) - (tokens[i] in _CLOSES)
        if not depth:
            return i
    return len(tokens)
