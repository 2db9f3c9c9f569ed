"""Byte-level BPE, and BPE over plain text with byte tokens (SentencePiece turned into merges).

Plain Python rather than a library: a file's merges are ready for use as they are, so that a tokenizer of
100,000s of merges is made in a fraction of the time that building a library's model takes, and words are
cached, which makes up for the speed on real text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from ..notice import warn
from .merging import merge
from .pretokenizers import PreTokenizer
from .spaces import SPACE, SpaceWords
from .splitting import split
from .unicode import code_points
from .vocabulary import MAX_TOKENS, Vocabulary, read_strings

MERGES = "tokenizer.ggml.merges"
_LONG_WORD = 256


def byte_letters() -> list[str]:
    """The letter that stands for each byte in GPT-2's vocabularies: itself if printable Latin-1.

    Others count on from U+0100. Source: Radford et al., "Language Models are Unsupervised Multitask
    Learners" (2019), and the code published with it.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class BytePairEncoder:
    """Text without special tokens -> ids."""

    def __init__(self, vocabulary: Vocabulary, pre: PreTokenizer, merges: list[str]) -> None:
        """merges: "left right", the first has the lowest rank; of equal ones the first counts."""
        self._ids, self._pre = vocabulary.ids, pre
        _check(merges, vocabulary.ids)
        self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        self._letters = dict(enumerate(byte_letters()))
        self._space_words = SpaceWords(vocabulary.tokens) if pre.raw else None
        self._cached = lru_cache(maxsize=1 << 16)(self._word)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; characters with no token vanish, as in llama.cpp."""
        ids: list[int] = []
        for word in self._words(code_points(text)):
            ids += self._cached(word) if len(word) < _LONG_WORD else self._word(word)
        return ids

    def _words(self, text: str) -> Iterable[str]:
        """The words to merge in, spelled in the vocabulary's letters."""
        if self._space_words is None:
            return split(text, self._pre.steps)
        lines = split(text.replace(" ", SPACE), self._pre.steps)
        return (word for line in lines for word in self._line_words(line, self._space_words))

    def _line_words(self, line: str, space_words: SpaceWords) -> Iterable[str]:
        """Words of a line of plain text, or the line breaks between two."""
        if not line.strip("\n"):
            return (line,)
        if self._pre.metaspace:
            line = line if line.startswith(SPACE) else SPACE + line
            return (SPACE + word for word in line.split(SPACE)[1:])
        return space_words.split(line)

    def _word(self, word: str) -> tuple[int, ...]:
        """Ids of one word."""
        pre = self._pre
        if not pre.raw:
            word = word.encode("utf-8", "surrogatepass").decode("latin-1").translate(self._letters)
        whole = pre.whole_words or (pre.whole_newlines and not word.strip("\n"))
        if whole and word in self._ids:
            return (self._ids[word],)
        symbols = merge(list(word), lambda left, right: self._ranks.get(f"{left} {right}"))
        return tuple(i for symbol in symbols for i in self._symbol(symbol))

    def _symbol(self, symbol: str) -> Iterable[int]:
        """The id of a symbol, or of a merged one that is no token those of its bytes, as llama.cpp does."""
        if symbol in self._ids:
            return (self._ids[symbol],)
        if not self._pre.raw:  # a byte of UTF-8 is a token's text only in ASCII
            return (self._ids[c] for c in symbol if c.isascii() and c in self._ids)
        names = (f"<0x{byte:02X}>" for byte in symbol.encode("utf-8", "surrogatepass"))
        return (self._ids[name] for name in names if name in self._ids)


def read_merges(metadata: Mapping[str, Any], required: bool) -> list[str]:
    """The merges of a file, unchecked; none if they are missing and not required."""
    if not required and MERGES not in metadata:
        return []
    return read_strings(metadata, MERGES)


def _check(merges: list[str], ids: Mapping[str, int]) -> None:
    """ValueError for too many merges; a warning if some are not two tokens which together are a third.

    Those are applied nevertheless, since llama.cpp does so; see `_symbol` for what becomes of the result.
    """
    if len(merges) > MAX_TOKENS:
        raise ValueError(f"{MERGES}: {len(merges)} merges found, expected at most {MAX_TOKENS}")
    wrong = [text for text in merges if not _makes_token(text, ids)]
    if wrong:
        shown = repr(wrong[0][:40])
        warn(f"{MERGES}: {len(wrong)} of {len(merges)} merges make no token, the first is {shown}")


def _makes_token(merge: str, ids: Mapping[str, int]) -> bool:
    left, space, right = merge.partition(" ")
    return bool(space) and left in ids and right in ids and left + right in ids
