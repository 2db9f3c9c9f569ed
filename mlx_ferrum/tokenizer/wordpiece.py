"""BERT's WordPiece: words of a normalized text, each cut greedily into the longest tokens.

In a GGUF file the first piece of a word is written with U+2581 before it and the others without "##".

A file without the key NORMALIZER gets llama.cpp's ids. The package's converter writes the key, and then ids are those
of the folder's tokenizer.json, with which the model was trained. The two differ in
- characters that decompose: llama.cpp keeps the first part (the first letter of a Korean syllable) and drops all
  marks; BertNormalizer drops nonspacing marks only, so Korean vowels and Indic vowel signs stay,
- vertical tab, form feed and U+0085: llama.cpp ends a word there, BertNormalizer removes them,
- U+2581 within a word, after which llama.cpp also finds tokens that begin a word,
- words of more characters than LONGEST_WORD says, which become one unknown token.
Known difference to the tokenizers library: there, marks and punctuation newer than Unicode 8 count as letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from .spaces import SPACE
from .unicode import base, category, code_points, lower
from .vocabulary import Vocabulary, read_flag

# Keys of the package's own: a normalizer of the tokenizers library, and the most characters of a word.
NORMALIZER = "tokenizer.huggingface.normalizer"
LONGEST_WORD = "tokenizer.huggingface.max_input_chars_per_word"
_BERT_NORMALIZER = "BertNormalizer"

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
        """Reads the normalizer's keys.

        Raises ValueError without an unknown token, NotImplementedError for an unknown normalizer.
        """
        self._first = self._rest = vocabulary.ids
        self._unknown = vocabulary.special_ids["unknown_token_id"]
        if self._unknown is None:
            raise ValueError("tokenizer.ggml.unknown_token_id: none found, expected a token id")
        self._longest = max(map(len, vocabulary.tokens))
        self._lowercase = read_flag(metadata, "normalizer.lowercase", True)
        self._strip = read_flag(metadata, "normalizer.strip_accents", self._lowercase)
        normalizer = metadata.get(NORMALIZER)
        if normalizer not in (None, _BERT_NORMALIZER):
            raise NotImplementedError(
                f"{NORMALIZER}: {normalizer!r} is not supported, expected {_BERT_NORMALIZER!r}"
            )
        self._longest_word = _longest_word(metadata)
        normalized = self._normalized
        if normalizer is not None:
            normalized = self._bert_normalized
            self._first, self._rest = _parted(vocabulary.ids)
        self._char = lru_cache(maxsize=1 << 16)(normalized)
        self._cached = lru_cache(maxsize=1 << 16)(self._word)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; a word that tokens cannot spell is one unknown token."""
        return [i for word in self._words(code_points(text)) for i in self._cached(word)]

    def _words(self, text: str) -> Iterator[str]:
        """Normalized words: white space separates; each sign and each ideograph is one of its own."""
        return iter("".join(map(self._char, text)).split(" "))

    def _bert_normalized(self, char: str) -> str:
        """What BertNormalizer and BertPreTokenizer make of a character: words between spaces."""
        if char in "\t\n\r":
            return " "
        if char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co"):
            return ""
        apart = _is_ideograph(char)
        if self._strip:
            char = unicodedata.normalize("NFD", char)
            char = "".join(c for c in char if unicodedata.category(c) != "Mn")
        char = char.lower() if self._lowercase else char
        char = "".join(f" {c} " if _is_sign(c) else " " if c.isspace() else c for c in char)
        return f" {char} " if apart else char

    def _normalized(self, char: str) -> str:
        """What llama.cpp makes of a character: itself, nothing, a space, or itself between spaces."""
        char = base(char) if self._strip else char
        kind = category(ord(char))
        if kind == "Z":
            return " "
        if char in "\0\ufffd" or kind == "C" or (self._strip and kind == "M"):
            return ""
        apart = _is_sign(char) or _is_ideograph(char)
        char = lower(char) if self._lowercase else char
        return f" {char} " if apart else char

    def _word(self, word: str) -> tuple[int, ...]:
        """Ids of one word; none for the empty one."""
        if not word:
            return ()
        assert self._unknown is not None
        if self._longest_word is not None and len(word) > self._longest_word:
            return (self._unknown,)
        word, ids, start = SPACE + word, [], 0
        while start < len(word):
            known = self._rest if start else self._first
            ends = range(min(len(word), start + self._longest), start, -1)
            end = next((end for end in ends if word[start:end] in known), None)
            if end is None:
                return (self._unknown,)
            ids.append(known[word[start:end]])
            start = end
        return tuple(ids)


def _is_sign(char: str) -> bool:
    """Whether it is punctuation, or a symbol of ASCII: a word of its own."""
    return category(ord(char)) == "P" or (category(ord(char)) == "S" and char < "\x80")


def _is_ideograph(char: str) -> bool:
    """Whether it is a word of its own as Chinese characters are."""
    return any(first <= ord(char) <= last for first, last in _IDEOGRAPHS)


def _parted(ids: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Tokens that begin a word, and those that continue one."""
    first = {text: i for text, i in ids.items() if text.startswith(SPACE) and len(text) > 1}
    return first, {text: i for text, i in ids.items() if text not in first}


def _longest_word(metadata: Mapping[str, Any]) -> int | None:
    """Raises ValueError for a length that is not positive."""
    found = metadata.get(LONGEST_WORD)
    if found is not None and (type(found) is not int or found < 1):
        raise ValueError(f"{LONGEST_WORD}: {found!r} found, expected a positive number")
    return found
