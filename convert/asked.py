"""What the commands that quantize are asked for, beside the recipe: importance, types of single tensors, effort."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlx_ferrum import cli

if TYPE_CHECKING:
    from mlx_ferrum.blocks import Block

    from .importance import Importance
    from .recipes import Overrides

EFFORTS = ("fast", "normal", "best")


class Asked(NamedTuple):
    """As fields of quantizing.Options."""

    overrides: Overrides
    importance: Importance | None
    effort: str
    threads: int | None


def read(args: argparse.Namespace) -> Asked:
    """What `arguments` added. Raises ValueError or OSError for an importance file that cannot be read."""
    from . import importance, recipes

    overrides = recipes.Overrides(args.tensor_type, args.output_type, args.embedding_type)
    found = None if args.imatrix is None else importance.read(args.imatrix)
    return Asked(overrides, found, args.effort, args.threads)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add --imatrix, --tensor-type, --output-type, --embedding-type, --effort and -t/--threads."""
    add = parser.add_argument
    add(
        "--imatrix",
        type=Path,
        metavar="FILE",
        help="weight errors by the importance of columns, from a GGUF or .dat file as `imatrix` and llama.cpp write it",
    )
    add(
        "--tensor-type",
        type=_pattern,
        action="append",
        default=[],
        metavar="REGEX=TYPE",
        help="the type of tensors whose names contain a match of REGEX; repeatable, the first match counts",
    )
    add("--output-type", type=_block, metavar="TYPE", help="the type of the output matrix")
    add("--embedding-type", type=_block, metavar="TYPE", help="the type of the token embeddings")
    add(
        "--effort",
        choices=EFFORTS,
        default="normal",
        help="how long to search for the best blocks (default: normal)",
    )
    add("-t", "--threads", type=cli.positive, metavar="N", help="threads (default: all cores)")


def _block(text: str) -> type[Block]:
    from mlx_ferrum.blocks import by_name

    try:
        return by_name(text.upper())
    except (ValueError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _pattern(text: str) -> tuple[re.Pattern[str], type[Block]]:
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"expected REGEX=TYPE, found {text!r}")
    try:
        return re.compile(pattern), _block(name)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{pattern!r} is no regular expression: {error}") from None
