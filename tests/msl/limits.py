"""What a kernel's text as a whole must keep to, before it is preprocessed: ASCII, and how many buffers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .signature import Signature
from .tokens import SourceError

MAX_BUFFERS = 31
_COMMENT_OR_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|[^\x00-\x7f]', re.DOTALL)
_LINE = re.compile(r'\s*#\s*line\s+(\d+)\s+"([^"]*)"')


def check(signature: Signature) -> None:
    """Raises SourceError with a line for each thing that MLX or Metal would refuse."""
    found = [
        *_not_ascii(signature.header, f"{signature.kernel} header"),
        *_not_ascii(signature.source, f"{signature.kernel} body"),
        *_buffers(signature),
    ]
    if found:
        raise SourceError("\n".join(found))


def place(text: str, at: int, file: str) -> str:
    """file:line of a character, where `#line` directives may name another file."""
    line = 1
    for row in text[:at].splitlines(keepends=True):
        marker = _LINE.match(row)
        if marker:
            line, file = int(marker[1]), marker[2]
        elif row.endswith("\n"):
            line += 1
    return f"{file}:{line}"


def _not_ascii(text: str, file: str) -> Iterator[str]:
    """MLX hands text to Metal as ASCII; only a comment may have other characters."""
    for found in _COMMENT_OR_TEXT.finditer(text):
        other = next((c for c in found[0] if not c.isascii()), None)
        if other and not found[0].startswith("/"):
            yield f"{place(text, found.start(), file)}: {other!r} is not ASCII"


def _buffers(signature: Signature) -> Iterator[str]:
    count = len(signature.buffers)
    if count > MAX_BUFFERS:
        yield f"{signature.kernel}: {count} buffers, shapes and strides included; {MAX_BUFFERS} is the limit"
