"""Finding special tokens in text, before the text between them is tokenized."""

from __future__ import annotations

from .vocabulary import Vocabulary

_SPACE = " \t\n\v\f\r"
_PREFIX = 4


class SpecialTokens:
    """Cuts text at special tokens, the longest token first and each from left to right.

    With parse_special all of them are found; without it only user-defined ones, which are found in any
    text (llama.cpp and the tokenizers that it follows do so).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._by_prefix: dict[bool, dict[str, list[tuple[int, int]]]] = {}

    def partition(self, text: str, parse_special: bool) -> list[str | int]:
        """The text as pieces of text and token ids, in order; no piece is empty."""
        pieces: list[str | int] = [text] if text else []
        for token in self._candidates(text, parse_special):
            pieces = [
                part
                for piece in pieces
                for part in (self._cut(piece, token) if isinstance(piece, str) else (piece,))
            ]
        return pieces

    def _candidates(self, text: str, parse_special: bool) -> list[int]:
        """Tokens whose text occurs, in the order in which they are searched for.

        A vocabulary has thousands of special tokens with few beginnings, so those are looked up first.
        """
        if parse_special not in self._by_prefix:
            groups: dict[str, list[tuple[int, int]]] = {}
            for place, token in enumerate(self._vocabulary.special_texts(parse_special)):
                prefix = self._vocabulary.tokens[token][:_PREFIX]
                groups.setdefault(prefix, []).append((place, token))
            self._by_prefix[parse_special] = groups
        found = [
            entry
            for prefix, entries in self._by_prefix[parse_special].items()
            if prefix in text
            for entry in entries
            if self._vocabulary.tokens[entry[1]] in text
        ]
        return [token for _, token in sorted(found)]

    def _cut(self, text: str, token: int) -> list[str | int]:
        """Cut one piece at each occurrence of a token."""
        parts: list[str | int] = []
        rest = text
        special = self._vocabulary.tokens[token]
        while special in rest:
            before, _, rest = rest.partition(special)
            if token in self._vocabulary.lstrip:
                before = before.rstrip(_SPACE)
            if token in self._vocabulary.rstrip:
                rest = rest.lstrip(_SPACE)
            parts += [before, token] if before else [token]
        return [*parts, rest] if rest else parts
