"""A text as chunks of tokens, cut as llama.cpp cuts it to measure perplexity and importance."""

from __future__ import annotations

from pathlib import Path

from mlx_ferrum.tokenizer import Tokenizer

SIZE = 512  # tokens, as in llama.cpp's tools


def read(path: Path, tokenizer: Tokenizer, size: int, most: int | None = None) -> list[list[int]]:
    """The text's whole chunks of `size` tokens; each begins with the token that begins a text, if the model has one.

    That token replaces the first one of a chunk. Special tokens in the text are read as plain text.
    most: how many chunks to give at most
    Raises ValueError if the text has less than one chunk, OSError if it cannot be read.
    """
    before = tokenizer.prefix_ids[:1]
    ids = [*before, *tokenizer.encode(path.read_bytes(), add_special=False)]
    count = len(ids) // size
    if count == 0:
        raise ValueError(f"{path}: {len(ids)} tokens, expected at least one chunk of {size}")
    if most is not None:
        count = min(count, most)
    starts = range(0, count * size, size)
    return [[*before, *ids[start + len(before) : start + size]] for start in starts]
