"""Character classes, lenient UTF-8, and the stand-in text that pre-tokenizers are matched on.

Token ids depend on which characters count as letters, so the classes are pinned to Unicode 15.1, the
version that llama.cpp's tables have, whatever version the running Python brings.

Text is `str`. Bytes that are not UTF-8 travel in it as the lone surrogates U+DC80..U+DCFF of Python's
`surrogateescape`; `code_points` turns them into what llama.cpp makes of them.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import cache

from .unicode_runs import RUNS

REPLACEMENT = "\ufffd"
_CONTROL_SPACES = frozenset({*range(0x09, 0x0E), 0x85})
HAN = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBEF),
    (0x2F800, 0x2FA1F),
)
_SURROGATE = re.compile("[\ud800-\udfff]")

# What stands for a non-ASCII character of each class; the characters themselves are arbitrary.
HAN_LETTER, HAN_OTHER = "\u00c8", "\u00c9"
STAND_INS = {
    "L": "\u00c0",
    "M": "\u00c1",
    "N": "\u00c2",
    "P": "\u00c3",
    "S": "\u00c4",
    "Z": "\v",
    "C": "\u00c5",
    "U": "\u00c5",
}
_ANY_LETTER = STAND_INS["L"] + HAN_LETTER
# Members of each class in stand-in text, as the inside of a regular expression's brackets. Upper and lower
# know only ASCII's cases: any other letter belongs to both.
CLASSES = {
    "L": "A-Za-z" + _ANY_LETTER,
    "Upper": "A-Z" + _ANY_LETTER,
    "Lower": "a-z" + _ANY_LETTER,
    "NotHan": "A-Za-z" + STAND_INS["L"],
    "Han": HAN_LETTER + HAN_OTHER,
    "M": STAND_INS["M"],
    "N": "0-9" + STAND_INS["N"],
    "P": r"!-#%-*,-/:;?@\[-\]_{}" + STAND_INS["P"],
    "S": r"$+<->^`|~" + STAND_INS["S"],
}


@cache
def _runs() -> tuple[list[int], list[str]]:
    """First code point and class of each run of the table."""
    starts, names, position = [], [], 0
    for run in RUNS.split():
        starts.append(position)
        names.append(run[0])
        position += int(run[1:])
    return starts, names


def category(code_point: int) -> str:
    """One of L M N P S Z C U (unassigned); every white space character is Z.

    Source: UnicodeData.txt 15.1 and the White_Space property of PropList.txt.
    """
    if code_point in _CONTROL_SPACES:
        return "Z"
    starts, names = _runs()
    return names[bisect_right(starts, code_point) - 1]


def is_han(code_point: int) -> bool:
    """Whether the code point lies in one of the CJK ideograph blocks."""
    return any(first <= code_point <= last for first, last in HAN)


def lower(char: str) -> str:
    """Simple lower case of one character; characters newer than the table stay as they are."""
    return char.lower()[0] if category(ord(char)) != "U" else char


def base(char: str) -> str:
    """First character of the canonical decomposition (NFD), within the table's Unicode."""
    return unicodedata.normalize("NFD", char)[0] if category(ord(char)) != "U" else char


class _StandIns(dict[int, str]):
    """Translation table that fills itself: ASCII stays, other code points become their class."""

    def __missing__(self, code_point: int) -> str:
        name = category(code_point)
        if code_point < 0x80:
            value = chr(code_point)
        elif is_han(code_point):
            value = HAN_LETTER if name == "L" else HAN_OTHER
        else:
            value = STAND_INS[name]
        self[code_point] = value
        return value


class _Spaces(dict[int, str]):
    """Translation table: non-ASCII white space becomes a vertical tab, all else stays."""

    def __missing__(self, code_point: int) -> str:
        space = code_point >= 0x80 and category(code_point) == "Z"
        self[code_point] = value = "\v" if space else chr(code_point)
        return value


_stand_ins, _spaces = _StandIns(), _Spaces()


def collapse(text: str) -> str:
    """Same length, each non-ASCII character replaced by the stand-in of its class."""
    return text if text.isascii() else text.translate(_stand_ins)


def plain_spaces(text: str) -> str:
    r"""Same length, with only ASCII white space left, so that `\s` in re.ASCII mode finds all of it."""
    return text if text.isascii() else text.translate(_spaces)


def is_utf8(text: str) -> bool:
    """Whether a text has no lone surrogates, neither escaped bytes nor others."""
    return _SURROGATE.search(text) is None


def raw_bytes(text: str) -> bytes:
    """The bytes a text stands for: UTF-8, escaped bytes as themselves, other lone surrogates as 3."""
    if is_utf8(text):
        return text.encode()
    return b"".join(
        bytes([ord(char) - 0xDC00])
        if "\udc80" <= char <= "\udcff"
        else char.encode("utf-8", "surrogatepass")
        for char in text
    )


def code_points(text: str) -> str:
    """Text as llama.cpp reads its bytes: each byte that starts no sequence is one U+FFFD.

    Sequences are not checked beyond their continuation bytes, so overlong forms and encoded
    surrogates count as the code point they spell; one above U+10FFFF is U+FFFD.
    """
    if is_utf8(text):
        return text
    data, chars, position = raw_bytes(text), [], 0
    while position < len(data):
        char, length = _sequence(data, position)
        chars.append(char)
        position += length
    return "".join(chars)


def _sequence(data: bytes, position: int) -> tuple[str, int]:
    """The character that starts at a byte, and how many bytes it takes."""
    first = data[position]
    if first < 0x80:
        return chr(first), 1
    length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    rest = data[position + 1 : position + length]
    if not 0xC0 <= first < 0xF8 or len(rest) < length - 1 or any(b & 0xC0 != 0x80 for b in rest):
        return REPLACEMENT, 1
    value = first & (0x7F >> length)
    for byte in rest:
        value = value << 6 | byte & 0x3F
    return (chr(value) if value <= 0x10FFFF else REPLACEMENT), length


def utf8_symbols(text: str) -> list[str]:
    """Characters of a text; around invalid bytes, as many bytes as the first one of each announces."""
    if is_utf8(text):
        return list(text)
    data, symbols, position = raw_bytes(text), [], 0
    while position < len(data):
        first = data[position]
        length = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        symbols.append(data[position : position + length].decode("utf-8", "surrogateescape"))
        position += length
    return symbols
