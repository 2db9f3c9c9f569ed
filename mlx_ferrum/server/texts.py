"""Prompts that a request gives as text."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_ferrum.tokenizer import Tokenizer

from .errors import RequestError


def encode_fill(tokenizer: Tokenizer, prompt: str | Sequence[int], suffix: str) -> list[int]:
    """See `Tokenizer.encode_fill`. Raises RequestError for a model without the tokens, ValueError for wrong ids."""
    try:
        return tokenizer.encode_fill(prompt, suffix)
    except ValueError as error:
        if tokenizer.fill_tokens is not None:
            raise
        raise RequestError(str(error), param="suffix", code="unsupported") from None
