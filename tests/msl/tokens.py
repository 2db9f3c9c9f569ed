"""Metal text as tokens that know their file and line.

The text comes out of the preprocessor: no comments, no macros of its own, `# 12 "file"` where lines come
from elsewhere. Spaces and line ends stay in front of the token that they precede, so that joining gives the text back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_PATTERN = re.compile(
    r"""(?P<space>(?:[^\S\n]|\\\n)+)
      | (?P<line>\n)
      | (?P<directive>\#[^\n]*)
      | (?P<number>\.?[0-9](?:[eEpP][+-]|[\w.])*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<mark>->\*|<<=|\.\.\.|::|->|\+\+|--|<<|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=
                |[-+*/%&|^~!<>=?:;,.(){}\[\]])""",
    re.VERBOSE,
)
_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)(?:\s+"([^"]*)")?')
# What is not between angles: of arguments, and of a template's parameters
_NO_ANGLES = ((";", "{", "}", ")", "&&", "||", "="), (";", "{", "}", ")"))
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class SourceError(Exception):
    """Metal text that cannot be compiled here, or not by Apple's compiler."""


class Token(NamedTuple):
    """kind: "name", "number", "text", "mark" or "directive"; before: the white space in front of it."""

    kind: str
    text: str
    before: str
    file: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def error(self, message: str) -> SourceError:
        return SourceError(f"{self.place}: {message}")

    def becomes(self, text: str) -> Token:
        """Other text at the same place."""
        return self._replace(text=text)


def tokenize(text: str, file: str) -> list[Token]:
    """The tokens of preprocessed text. Raises SourceError for a character that none starts with."""
    out: list[Token] = []
    line, at, before = 1, 0, ""
    while at < len(text):
        found = _PATTERN.match(text, at)
        if not found:
            raise SourceError(f"{file}:{line}: {text[at]!r} starts no token")
        kind, piece, at = found.lastgroup or "", found[0], found.end()
        if kind in ("space", "line"):
            before += piece
            line += piece.count("\n")
            continue
        out.append(Token(kind, piece, before, file, line))
        before = ""
        marker = _MARKER.match(piece) if kind == "directive" else None
        if marker:
            line, file = int(marker[1]) - 1, marker[2] or file
    return out


def join(tokens: Sequence[Token]) -> str:
    """The text again."""
    return "".join(t.before + t.text for t in tokens)


def is_mark(tokens: Sequence[Token], i: int, *marks: str) -> bool:
    """Whether token i is one of `marks`; false outside."""
    # few texts are among the marks, so this is asked first
    return 0 <= i < len(tokens) and tokens[i].text in marks and tokens[i].kind == "mark"


def is_name(tokens: Sequence[Token], i: int, *names: str) -> bool:
    """Whether token i is a name, and one of `names` if there are any; false outside."""
    if not 0 <= i < len(tokens):
        return False
    return (not names or tokens[i].text in names) and tokens[i].kind == "name"


def closing(tokens: Sequence[Token], i: int) -> int:
    """The bracket that closes the one at i. Raises SourceError if there is none."""
    opens, closes = tokens[i].text, _PAIRS[tokens[i].text]
    depth = 0
    for k in range(i, len(tokens)):
        depth += is_mark(tokens, k, opens) - is_mark(tokens, k, closes)
        if depth == 0:
            return k
    raise tokens[i].error(f"no {closes} for this {opens}")


def closing_angle(tokens: Sequence[Token], i: int, *, in_template: bool = False) -> int | None:
    """The > that closes the < at i; None if it is a comparison.

    in_template: the < is of a template's parameters, which may have default values
    """
    depth = 0
    k = i
    while k < len(tokens):
        if is_mark(tokens, k, "("):
            k = closing(tokens, k)
        elif is_mark(tokens, k, "<") and not is_mark(tokens, k - 1, ")"):
            depth += 1
        elif is_mark(tokens, k, ">"):
            depth -= 1
            if depth == 0:
                return k
        elif is_mark(tokens, k, *_NO_ANGLES[in_template]):
            return None
        k += 1
    return None


def split(tokens: Sequence[Token], mark: str = ",") -> Iterator[list[Token]]:
    """The runs of tokens between marks that are in no bracket."""
    part: list[Token] = []
    depth = 0
    for i, t in enumerate(tokens):
        depth += is_mark(tokens, i, "(", "[", "{") - is_mark(tokens, i, ")", "]", "}")
        if depth == 0 and is_mark(tokens, i, mark):
            yield part
            part = []
        else:
            part.append(t)
    yield part
