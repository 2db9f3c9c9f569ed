"""A text as chunks of tokens, cut as llama.cpp cuts it to measure perplexity and importance."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli
from mlx_ferrum.progress import bar

if TYPE_CHECKING:
    from mlx_ferrum.tokenizer import Tokenizer

SIZE = 512  # tokens, as in llama.cpp's tools
LEAST = 4  # tokens, of which perplexity scores one


def arguments(parser: argparse._ActionsContainer, most: int | None = None) -> None:
    """Add --chunks and --chunk-size. most: chunks by default, if not all."""
    add = parser.add_argument
    default = f"(default: {most or 'all'})"
    add("--chunks", type=cli.positive, metavar="N", help=f"read the first N chunks {default}")
    add(
        "--chunk-size",
        type=cli.positive,
        metavar="N",
        help=f"tokens in a chunk (default: {SIZE}, or the model's context if that is shorter)",
    )


def size(asked: int | None, context: int) -> int:
    """Tokens in a chunk. Raises ValueError if `asked` does not lie between LEAST and the model's context."""
    if asked is not None and not LEAST <= asked <= context:
        raise ValueError(
            f"--chunk-size {asked}: expected {LEAST} to {context}, the model's context"
        )
    return min(SIZE, context) if asked is None else asked


def read(path: Path, tokenizer: Tokenizer, size: int, most: int | None = None) -> list[list[int]]:
    """The chunks of a file's text; see `cut` and `text`, also for errors."""
    return cut(text(path), tokenizer, size, most, name=str(path))


def text(path: Path) -> str:
    """A file's text. Raises OSError if it cannot be read, ValueError if it is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from None


def cut(
    text: str, tokenizer: Tokenizer, size: int, most: int | None = None, *, name: str = "the text"
) -> list[list[int]]:
    """The whole chunks of `size` tokens; each begins with the token that begins a text, if the model has one.

    That token replaces the first one of a chunk. Special tokens in the text are read as plain text.
    most: how many chunks to give at most; name: of the text, for the error
    Raises ValueError if the text has less than one chunk.
    """
    before = tokenizer.prefix_ids[:1]
    ids = [*before, *tokenizer.encode(text, add_special=False)]
    count = len(ids) // size
    if count == 0:
        raise ValueError(f"{name}: {len(ids)} tokens, expected at least one chunk of {size}")
    if most is not None:
        count = min(count, most)
    starts = range(0, count * size, size)
    return [[*before, *ids[start + len(before) : start + size]] for start in starts]


@contextmanager
def progress(chunks: Sequence[list[int]], name: str) -> Iterator[Iterator[list[int]]]:
    """Gives an iterator over the chunks that moves a bar, in tokens, when the next one is asked for."""
    total = sum(map(len, chunks))
    with bar(total=total, desc=name, unit="tok", unit_scale=True) as shown:

        def counted() -> Iterator[list[int]]:
            for chunk in chunks:
                yield chunk
                shown.update(len(chunk))

        yield counted()
