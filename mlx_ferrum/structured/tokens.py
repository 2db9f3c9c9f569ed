"""Our tokenizer as llguidance wants it: the bytes of each token, and how it spells text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class _Spelling:
    """What llguidance reads of a tokenizer, by the names that it expects."""

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self.tokens = [spelled for spelled, _ in pieces]
        self.special_token_ids = [i for i, (_, is_special) in enumerate(pieces) if is_special]
        self.eos_token_id, self.bos_token_id = eos, tokenizer.bos_token_id
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of a text that continues another."""
        return self._tokenizer.encode_within(text)


def llguidance_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """The tokenizer for llguidance; logits have `vocab_size` columns, perhaps more than there are tokens.

    Raises ValueError if logits are fewer than tokens or no token ends a text.
    """
    if vocab_size < tokenizer.vocab_size:
        raise ValueError(f"{vocab_size} logits for {tokenizer.vocab_size} tokens, expected more")
    ends = sorted(tokenizer.eos_token_ids)
    if not ends:
        raise ValueError("the tokenizer has no end token, which grammars need")
    from llguidance import LLTokenizer, TokenizerWrapper

    first = tokenizer.eos_token_id
    spelling: Any = TokenizerWrapper(_Spelling(tokenizer, ends[0] if first is None else first))
    return LLTokenizer(spelling, n_vocab=vocab_size, eos_token=ends)
