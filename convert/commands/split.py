"""`split IN OUT-PREFIX`: a model in several files, as llama.cpp splits them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_ferrum import cli


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from .. import parts, source, target

    cli.begin()
    model = source.read_stacked(args.model)
    tensors = [source.copied(model, info) for info in model.tensors.values()]
    if args.max_size is not None:
        groups = parts.by_size(tensors, args.max_size)
    else:
        groups = parts.by_count(tensors, args.max_tensors)
    target.run(parts.files(args.prefix, source.metadata(model), groups), model, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    from ..target import arguments

    parser = cli.Parser(
        "convert split",
        description="Split a GGUF model into files PREFIX-00001-of-00003.gguf and so on, as "
        "llama-gguf-split does. The first one has the metadata; naming any of them loads the "
        "model. All of them appear together when they are complete.",
        epilog="example:\n  %(prog)s model.gguf parts/model --max-size 2G",
    )
    cli.model_argument(parser, "model")
    parser.add_argument("prefix", type=Path, metavar="OUT-PREFIX", help="what the names begin with")
    most = parser.add_mutually_exclusive_group(required=True)
    most.add_argument(
        "--max-size",
        type=cli.size,
        metavar="SIZE",
        help="bytes of tensors in a file at most: 500M, 2G; 1G is 1,000,000,000 bytes",
    )
    most.add_argument(
        "--max-tensors", type=cli.positive, metavar="N", help="tensors in a file at most"
    )
    arguments(parser)
    return parser
