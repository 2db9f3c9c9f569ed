"""SentencePiece's BPE: merges by the score of the token that results, bytes for the rest.

Plain Python rather than the sentencepiece library: that one needs the model's protobuf, which a GGUF file
does not have, and treats user-defined tokens and white space in ways of its own.
"""

from __future__ import annotations

from functools import lru_cache

from .merging import merge
from .spaces import SPACE, SpaceWords
from .unicode import raw_bytes, utf8_symbols
from .vocabulary import Vocabulary

_LONG_WORD = 256


class SentencePieceEncoder:
    """Text without special tokens -> ids."""

    def __init__(self, vocabulary: Vocabulary, space_prefix: bool) -> None:
        """space_prefix: any text gets a space before it, also between special tokens."""
        self._space_prefix = space_prefix
        self._ids = vocabulary.ids
        self._unknown = vocabulary.special_ids["unknown_token_id"]
        scores = vocabulary.scores
        self._ranks = [0.0] * len(self._ids) if scores is None else (-scores).tolist()
        self._words = SpaceWords(vocabulary.tokens)
        self._cached = lru_cache(maxsize=1 << 16)(self._word)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        if self._space_prefix:
            text = " " + text
        ids: list[int] = []
        for word in self._words.split(text.replace(" ", SPACE)):
            ids += self._cached(word) if len(word) < _LONG_WORD else self._word(word)
        return ids

    def _word(self, word: str) -> tuple[int, ...]:
        """Ids of one word."""
        ids, ranks = self._ids, self._ranks
        symbols = merge(
            utf8_symbols(word),
            lambda left, right: None if (i := ids.get(left + right)) is None else ranks[i],
        )
        return tuple(i for symbol in symbols for i in self._symbol(symbol))

    def _symbol(self, symbol: str) -> tuple[int, ...]:
        """The id of a symbol or those of its bytes; the unknown token for a byte that has none."""
        if symbol in self._ids:
            return (self._ids[symbol],)
        return tuple(self._byte(byte) for byte in raw_bytes(symbol))

    def _byte(self, byte: int) -> int:
        token = self._ids.get(f"<0x{byte:02X}>")
        if token is None and byte < 0x80:
            token = self._ids.get(chr(byte))
        if token is not None:
            return token
        if self._unknown is None:
            raise ValueError(
                f"tokenizer.ggml.tokens: no token for byte {byte:#04x}, nor an unknown one"
            )
        return self._unknown
