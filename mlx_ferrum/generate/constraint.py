"""`--grammar` and `--json-schema` of the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_ferrum.models.base import LanguageModel
    from mlx_ferrum.structured import Grammar
    from mlx_ferrum.tokenizer import Tokenizer


def constraint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group("form", "What the text must look like (extra: server).")
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--grammar", type=_text, metavar="FILE", help="follow the lark grammar in FILE"
    )
    form.add_argument(
        "--json-schema",
        type=_text,
        metavar="FILE",
        help="JSON that is valid for the schema in FILE",
    )


def check_constraint(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error for arguments that exclude each other."""
    for name in ("grammar", "json_schema"):
        if getattr(args, name) is not None and args.ignore_eos:
            option = name.replace("_", "-")
            parser.error(f"argument --{option}: not allowed with argument --ignore-eos")


def constraint(
    args: argparse.Namespace, model: LanguageModel, tokenizer: Tokenizer
) -> Grammar | None:
    """The grammar that the arguments ask for. Raises ValueError for one that is wrong or not supported."""
    if args.grammar is None and args.json_schema is None:
        return None
    from mlx_ferrum.structured import Grammars

    grammars = Grammars(tokenizer, model.args.vocab_size)
    if args.grammar is not None:
        return grammars.lark(args.grammar)
    try:
        schema = json.loads(args.json_schema)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the JSON schema: {error}") from None
    return grammars.json_schema(schema)


def _text(name: str) -> str:
    """The text of a file."""
    try:
        return Path(name).read_text("utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error.strerror}") from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name}: is not UTF-8") from None
