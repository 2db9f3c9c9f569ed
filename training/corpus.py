"""The King James Bible as text to train on: chapters, and which of them are held out.

Debian has the text (in the public domain) in a compressed form, and a program that prints it; no root
is needed:

    apt-get download bible-kjv bible-kjv-text
    for package in bible-kjv*.deb; do dpkg -x $package kjv; done
    (cd kjv/usr/lib && ../bin/bible -f gen1:1-rev22:21 < /dev/null) > kjv.txt

Each of its lines is a verse after its place, as `1Cor13:8 Charity never faileth: …`.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

_VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):(\d+) +(.*\S)\s*")
VERSES = 31102

# Whole books, so that no neighbouring verse or parallel account of them is trained on: a story, wisdom, two
# prophets, two letters.
HELD_OUT = frozenset(("Ruth", "Eccl", "Jonah", "Mal", "Phi", "Jas"))


class Corpus(NamedTuple):
    """Chapters as text, a verse a line, without their places."""

    train: list[str]
    held_out: list[str]


def read(path: Path) -> Corpus:
    """The chapters in `path`, the program's output.

    `ValueError` names a line that is no verse, or says how many verses were found.
    """
    verses = [_verse(line) for line in path.read_text(encoding="ascii").splitlines()]
    if len(verses) != VERSES:
        raise ValueError(f"{path}: expected {VERSES} verses, found {len(verses)}")
    corpus = Corpus([], [])
    for (book, _), group in groupby(verses, key=lambda verse: verse[:2]):
        chapters = corpus.held_out if book in HELD_OUT else corpus.train
        chapters.append("\n".join(text for _, _, text in group))
    return corpus


def _verse(line: str) -> tuple[str, int, str]:
    """(book, chapter, text) of a line."""
    match = _VERSE.fullmatch(line)
    if match is None:
        raise ValueError(f"not a verse: {line[:60]!r}")
    return match[1], int(match[2]), match[4]
