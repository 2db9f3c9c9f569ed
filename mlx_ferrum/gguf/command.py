"""The command `python -m mlx_ferrum.gguf FILE`: what a GGUF file holds, as text or as JSON."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence

from mlx_ferrum import catalog, cli


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from .file import read
    from .listing import as_json, as_text

    cli.begin()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    model = read(catalog.resolve(args.model))
    for line in [json.dumps(as_json(model))] if args.json else as_text(model, args.full):
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "gguf",
        description="Print the metadata and the tensors of a GGUF file, version 2 or 3. Shapes are in "
        "NumPy's order: (rows, columns). Naming one part of a split model shows the whole model.",
    )
    cli.model_argument(parser, "model")
    parser.add_argument(
        "--full",
        action="store_true",
        help="do not abbreviate long strings, arrays and lists of experts",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, nothing abbreviated; NaN and infinity become null",
    )
    return parser
