"""Finding special tokens in text, before the text between them is tokenized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache

from .vocabulary import Vocabulary

_SPACE = " \t\n\v\f\r"
_KEY = 4
_LONG_CLUSTER = 256


class SpecialTokens:
    """Cuts text at special tokens: the longest token first, each of them from left to right.

    With parse_special all of them are found; without it only user-defined ones, which are found in any
    text, as in llama.cpp.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._finders = {flag: _Finder(vocabulary, flag) for flag in (False, True)}

    def partition(self, text: str, parse_special: bool) -> list[str | int]:
        """The text as pieces of text and token ids, in order; no piece is empty."""
        return self._finders[parse_special].partition(text)


class _Finder:
    """Finds one set of tokens.

    Tokens seldom overlap, so one scan of the text finds clusters of overlapping tokens, nearly always of
    a single one; only inside a cluster does the order in which tokens are searched for matter.
    """

    def __init__(self, vocabulary: Vocabulary, parse_special: bool) -> None:
        self._vocabulary, self._parse_special = vocabulary, parse_special
        self._cached = lru_cache(maxsize=1 << 12)(self._cut_cluster)

    def partition(self, text: str) -> list[str | int]:
        """See SpecialTokens.partition."""
        pieces: list[str | int] = []
        done = 0
        for start, end in self._clusters(text):
            _extend(pieces, (text[done:start],))
            cluster = text[start:end]
            if cluster in self._order and not self._strips:
                pieces.append(self._vocabulary.ids[cluster])
            else:
                cut = self._cached if len(cluster) < _LONG_CLUSTER else self._cut_cluster
                _extend(pieces, cut(cluster))
            done = end
        _extend(pieces, (text[done:],))
        return pieces

    @cached_property
    def _order(self) -> dict[str, int]:
        """Texts of the tokens, in the order in which they are searched for."""
        ids = self._vocabulary.special_texts(self._parse_special)
        return {self._vocabulary.tokens[token]: place for place, token in enumerate(ids)}

    @cached_property
    def _strips(self) -> bool:
        return bool(self._vocabulary.lstrip or self._vocabulary.rstrip)

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        """The tokens by their first characters, or all of them where they are fewer than four."""
        groups: dict[str, list[str]] = {}
        for text in self._order:
            groups.setdefault(text[:_KEY], []).append(text)
        return groups

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """Lengths of the tokens that text with these first characters may begin with, longest first."""
        sizes = {key: {len(text) for text in texts} for key, texts in self._by_key.items()}
        return {
            key: sorted(
                {n for k in range(len(key)) for n in sizes.get(key[: k + 1], ())}, reverse=True
            )
            for key in sizes
        }

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """Matches one character, at which a token may begin."""
        followers: dict[str, list[str]] = {}
        for key in self._lengths:
            followers.setdefault(key[0], []).append(key[1:])
        branches = (f"{re.escape(first)}{_ahead(rest)}" for first, rest in followers.items())
        return re.compile("|".join(branches) or "(?!)")

    def _clusters(self, text: str) -> Iterator[tuple[int, int]]:
        """Where tokens are: spans that do not overlap, with the white space that tokens take along."""
        vocabulary = self._vocabulary
        start = end = 0
        for first, last in self._occurrences(text):
            while vocabulary.lstrip and first >= max(end, 1) and text[first - 1] in _SPACE:
                first -= 1
            if vocabulary.rstrip and last > end:
                last = _skip_space(text, last)
            if first >= end:
                if start < end:
                    yield start, end
                start = first
            end = max(end, last)
        if start < end:
            yield start, end

    def _occurrences(self, text: str) -> Iterator[tuple[int, int]]:
        """Where tokens begin, and where the longest that begins there ends."""
        order, lengths = self._order, self._lengths
        for match in self._starts.finditer(text):
            start = match.start()
            size = _KEY
            while (sizes := lengths.get(text[start : start + size])) is None:
                size -= 1
            for length in sizes:
                if text[start : start + length] in order:
                    yield start, start + length
                    break

    def _cut_cluster(self, text: str) -> list[str | int]:
        """Cut a text at one token after the other."""
        keys = {text[m.start() : m.start() + _KEY] for m in self._starts.finditer(text)}
        starts = {key[:size] for key in keys for size in range(1, _KEY + 1)}
        found = {t for key in starts for t in self._by_key.get(key, ()) if t in text}
        pieces: list[str | int] = [text]
        for special in sorted(found, key=self._order.__getitem__):
            pieces = [
                part
                for piece in pieces
                for part in (self._cut(piece, special) if isinstance(piece, str) else (piece,))
            ]
        return pieces

    def _cut(self, text: str, special: str) -> list[str | int]:
        """Cut one piece at each occurrence of a token."""
        token = self._vocabulary.ids[special]
        parts: list[str | int] = []
        done = 0
        while (at := text.find(special, done)) >= 0:
            before = text[done:at]
            if token in self._vocabulary.lstrip:
                before = before.rstrip(_SPACE)
            parts += [before, token] if before else [token]
            done = at + len(special)
            if token in self._vocabulary.rstrip:
                done = _skip_space(text, done)
        return [*parts, text[done:]] if done < len(text) else parts


def _extend(pieces: list[str | int], more: Iterable[str | int]) -> None:
    """Append pieces; text joins the text before it, and empty text vanishes."""
    for piece in more:
        if piece == "":
            continue
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)


def _ahead(texts: list[str]) -> str:
    """An expression that looks ahead for one of some texts, of which "" is always there."""
    if "" in texts:
        return ""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[0], []).append(text[1:])
    return f"(?={'|'.join(re.escape(char) + _ahead(rest) for char, rest in groups.items())})"


def _skip_space(text: str, start: int) -> int:
    """Where the white space that begins at a place ends."""
    while start < len(text) and text[start] in _SPACE:
        start += 1
    return start
