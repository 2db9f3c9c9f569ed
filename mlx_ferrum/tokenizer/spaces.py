"""U+2581 for spaces, and where text of that form can be cut without changing any merge."""

from __future__ import annotations

import re

from .unicode import is_utf8

SPACE = "\u2581"


class SpaceWords:
    """Cuts text before runs of U+2581, where no token goes across.

    SentencePiece merges over the whole text. A merge across a cut would make a token with U+2581 after
    another character, so a cut is safe unless the vocabulary has a token with those two in a row. Words
    can then be merged on their own, and cached.
    """

    def __init__(self, tokens: list[str]) -> None:
        separator = "\ud800"  # no token has it: the texts of a file are UTF-8
        joined = separator.join(tokens)
        joining = {*re.findall(f"([^{SPACE}{separator}]){SPACE}", joined)}
        never_after = SPACE + "".join(map(re.escape, sorted(joining)))
        self._cut = re.compile(f"(?<=[^{never_after}])(?={SPACE})")

    def split(self, text: str) -> list[str]:
        """The words of a text; joined they are the text again."""
        if is_utf8(text):
            return self._cut.split(text)
        return [text]  # bytes that are not UTF-8 take those after them along
