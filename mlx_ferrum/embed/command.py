"""The command line: embeddings of texts, one JSON object a line or one .npy file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import mlx_ferrum
from mlx_ferrum import cli

EXAMPLES = """\
examples:
  %(prog)s minilm.gguf "a text" "another text"
  %(prog)s minilm.gguf --out vectors.npy - < lines.txt
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    cli.import_engine()
    import numpy as np

    texts = [line for text in args.texts for line in _lines(text)]
    if args.out is not None:
        cli.check_writable(args.out)
    model, tokenizer = cli.load_model(args)
    vectors = mlx_ferrum.embed(model, tokenizer, texts, normalize=not args.raw)
    if args.out is not None:
        with args.out.open("wb") as file:
            np.save(file, vectors)
        return 0
    for text, vector in zip(texts, vectors.tolist(), strict=True):
        print(json.dumps({"text": text, "embedding": vector}))
    return 0


def _lines(text: str) -> list[str]:
    return cli.read_prompt(text).splitlines() if text == "-" else [text]


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "embed",
        description="Print the embedding of each text, one JSON object a line.",
        epilog=EXAMPLES,
    )
    cli.model_argument(parser, "model")
    parser.add_argument(
        "texts",
        nargs="+",
        type=cli.utf8,
        metavar="TEXT",
        help="a text; '-' reads one text a line from stdin",
    )
    parser.add_argument("--raw", action="store_true", help="do not scale embeddings to length 1")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.npy", help="write an array (texts, size) of float32"
    )
    cli.backend_arguments(parser)
    return parser
