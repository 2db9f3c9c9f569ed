"""BERT's WordPiece: words of a normalized text, each cut greedily into the longest tokens.

In a GGUF file the first piece of a word is written with U+2581 before it and the others without "##".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from .spaces import SPACE
from .unicode import base, category, code_points, lower
from .vocabulary import Vocabulary, read_flag

_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B81F),
    (0x2B920, 0x2CEAF),  # not 0x2B820, as in the tokenizers library
    (0x2F800, 0x2FA1F),
)


class WordPieceEncoder:
    """Text without special tokens -> ids."""

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> None:
        """Reads the normalizer's flags; ValueError without an unknown token."""
        self._ids = vocabulary.ids
        self._unknown = vocabulary.special_ids["unknown_token_id"]
        if self._unknown is None:
            raise ValueError("tokenizer.ggml.unknown_token_id: none found, expected a token id")
        self._longest = max(map(len, vocabulary.tokens))
        self._lowercase = read_flag(metadata, "normalizer.lowercase", True)
        self._strip = read_flag(metadata, "normalizer.strip_accents", self._lowercase)
        self._char = lru_cache(maxsize=1 << 16)(self._normalized)
        self._cached = lru_cache(maxsize=1 << 16)(self._word)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; a word that tokens cannot spell is one unknown token."""
        return [i for word in self._words(code_points(text)) for i in self._cached(word)]

    def _words(self, text: str) -> Iterator[str]:
        """Normalized words: white space separates; each sign and each ideograph is one of its own."""
        return iter("".join(map(self._char, text)).split(" "))

    def _normalized(self, char: str) -> str:
        """What a character becomes: itself, nothing, a space, or itself between spaces."""
        char = base(char) if self._strip else char
        kind, code = category(ord(char)), ord(char)
        if kind == "Z":
            return " "
        if char in "\0\ufffd" or kind == "C" or (self._strip and kind == "M"):
            return ""
        apart = kind == "P" or (kind == "S" and code < 0x80)
        apart = apart or any(first <= code <= last for first, last in _IDEOGRAPHS)
        char = lower(char) if self._lowercase else char
        return f" {char} " if apart else char

    def _word(self, word: str) -> tuple[int, ...]:
        """Ids of one word; none for the empty one."""
        if not word:
            return ()
        assert self._unknown is not None
        word, ids, start = SPACE + word, [], 0
        while start < len(word):
            ends = range(min(len(word), start + self._longest), start, -1)
            end = next((end for end in ends if word[start:end] in self._ids), None)
            if end is None:
                return (self._unknown,)
            ids.append(self._ids[word[start:end]])
            start = end
        return tuple(ids)
