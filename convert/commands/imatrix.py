"""`imatrix MODEL TEXT OUT.gguf`: which columns of a model's matrices matter, measured on a text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli, notice

from .. import chunks, target

if TYPE_CHECKING:
    from mlx_ferrum.models.base import LanguageModel

    from ..activations import Sums

EPILOG = """\
The model reads the text in chunks, each without those before it. For each column of a matrix the file
says how large the numbers are that it is multiplied by; `quantize --imatrix` gives large ones more
precision. Measure with the least quantized model that you can run, and with text like the one that the
model is for: 100 chunks or more, several languages and kinds of text if it is for all of them. Experts
have columns of their own. An expert that no token chooses is named, and all its columns count alike.
llama-quantize reads the file, too. Memory: what a prompt of a chunk needs.

examples:
  %(prog)s model-f16.gguf text.txt imatrix.gguf
  %(prog)s model-f16.gguf text.txt imatrix.gguf --chunks 100
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    cli.import_engine()
    from .. import activations, output, source

    parts = [part.path for part in source.read(args.model).files]
    target.check([args.out], [*parts, args.text], args.force)
    model, tokenizer = cli.load_model(args)
    size = chunks.size(args.chunk_size, model.args.context_length)
    pieces = chunks.read(args.text, tokenizer, size, args.chunks)
    if args.dry_run:
        found = activations.collect(model, [pieces[0][:1]], head=args.process_output)
        print(f"{args.out}: from {len(pieces)} chunks of {size} tokens")
        print(*output.table(activations.planned(found)), sep="\n")
        return 0
    found = _collect(model, pieces, args)
    values = activations.metadata(args.text, len(pieces), size)
    output.write(args.out, values, activations.planned(found))
    for line in activations.notices(found):
        notice.warn(line)
    print(f"{args.out}: {len(found)} matrices, {len(pieces)} chunks of {size} tokens")
    return 0


def _collect(
    model: LanguageModel, pieces: list[list[int]], args: argparse.Namespace
) -> dict[str, Sums]:
    from .. import activations

    with chunks.progress(pieces, args.text.name) as read:
        return activations.collect(model, read, head=args.process_output)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "convert imatrix",
        description="Measure on a text which columns of a model's matrices matter, and write an "
        "importance matrix in llama.cpp's GGUF format. OUT appears when it is complete.",
        epilog=EPILOG,
    )
    cli.model_argument(parser, "model")
    add = parser.add_argument
    add("text", type=Path, metavar="TEXT", help="a text file")
    add("out", type=Path, metavar="OUT.gguf", help="the file to write")
    chunks.arguments(parser)
    add(
        "--process-output",
        action="store_true",
        help="measure the output matrix, too, which llama.cpp leaves out unless asked",
    )
    target.arguments(parser)
    cli.backend_arguments(parser)
    cli.expert_argument(parser)
    return parser
