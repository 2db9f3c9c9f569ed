"""Ids -> text, all at once or token by token.

Tokens stand for bytes. Bytes that are not UTF-8 become U+FFFD, as Python's incremental decoder does it, so
streamed text equals text decoded at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable
from functools import lru_cache
from operator import index

from .bpe import byte_letters
from .spaces import SPACE
from .vocabulary import TokenType, Vocabulary

SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
# Encoding cuts the text at these tokens and adds a space before each part between them.
_CUTTING = (TokenType.CONTROL, TokenType.USER_DEFINED)


class Pieces:
    """The bytes that each token stands for."""

    def __init__(self, vocabulary: Vocabulary, byte_level: bool, strip_space: bool) -> None:
        """strip_space: encoding adds a space before text, which decoding removes."""
        self.strip_space = strip_space
        self._tokens, self._types = vocabulary.tokens, vocabulary.types.tobytes()
        self._byte_level = byte_level
        self._bytes = {letter: bytes([i]) for i, letter in enumerate(byte_letters())}
        self._cached = lru_cache(maxsize=1 << 14)(self._piece)

    def get(self, token: int) -> tuple[bytes, int]:
        """Bytes of a token and its type; ValueError if the vocabulary has no such id."""
        try:
            return self._cached(index(token))
        except TypeError:
            raise ValueError(f"token id {token!r} found, expected an integer") from None

    def _piece(self, token: int) -> tuple[bytes, int]:
        if not 0 <= token < len(self._tokens):
            raise ValueError(f"token id {token} found, expected 0 <= id < {len(self._tokens)}")
        return self._spell(self._tokens[token], self._types[token]), self._types[token]

    def _spell(self, text: str, kind: int) -> bytes:
        """Bytes of a token of some type; unused ones have none."""
        if kind in (*SPECIAL, TokenType.USER_DEFINED):
            return text.encode()
        if kind == TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        if kind != TokenType.NORMAL:
            return b""
        if self._byte_level:
            return b"".join(self._bytes.get(letter) or letter.encode() for letter in text)
        return text.replace(SPACE, " ").encode()


class StreamingDetokenizer:
    """Text of a growing list of ids; each character appears once it is complete."""

    def __init__(
        self,
        pieces: Pieces,
        skip_special: bool = False,
        before: Iterable[int] = (),
        shown: Collection[str] = (),
    ) -> None:
        """before: ids whose text the caller has already; what `add` gives continues it. shown: see Tokenizer."""
        self._pieces, self._skip_special = pieces, skip_special
        self._shown = frozenset(text.encode() for text in shown)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_space = pieces.strip_space
        for token in before:
            self.add(token)

    def add(self, token: int) -> str:
        """The text that is certain with this token, maybe empty. ValueError for an id out of range."""
        piece, kind = self._pieces.get(token)
        if self._strip_space and kind not in (*SPECIAL, TokenType.USER_DEFINED):
            piece, self._strip_space = piece.removeprefix(b" "), not piece
        if kind in _CUTTING:
            self._strip_space = self._pieces.strip_space
        if kind in SPECIAL and self._skip_special and piece not in self._shown:
            return ""
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """The rest: U+FFFD if the last character never became complete."""
        return self._decoder.decode(b"", final=True)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some ids, to the end."""
        return "".join(map(self.add, tokens)) + self.finish()
