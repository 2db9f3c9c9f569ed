"""`merge PART OUT.gguf`: a split model in one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_ferrum import cli


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from .. import output, source, target

    cli.begin()
    model = source.read(args.model)
    if len(model.parts) == 1:
        raise ValueError(f"{model.path}: is one file, expected a part of a split model")
    tensors = [source.copied(model, info) for info in model.tensors.values()]
    target.run([output.File(args.out, source.metadata(model), tensors)], model, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    from ..target import arguments

    parser = cli.Parser(
        "convert merge",
        description="Join the files of a split GGUF model into one. Any of its files names the "
        "model; the others are found beside it. They stay.",
        epilog="example:\n  %(prog)s parts/model-00001-of-00003.gguf model.gguf",
    )
    cli.model_argument(parser, "model")
    parser.add_argument("out", type=Path, metavar="OUT.gguf", help="the file to write")
    arguments(parser)
    return parser
