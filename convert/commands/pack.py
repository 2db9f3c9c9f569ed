"""`pack IN OUT.gguf`: a mixture of experts whose experts are read from disk quickly."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_ferrum import cli

EPILOG = """\
The parts of each expert (gate, up, down) lie side by side and begin on pages of 16 KiB, so that an expert is one
stretch of the file. Tensors keep their bytes and types. The file is valid GGUF with a tensor for each matrix of
an expert (blk.0.ffn_gate.5.weight), but programs that expect stacks of experts, such as llama.cpp, cannot run it.

Packed files are read by the cpu and the reference backend, mapped or with --expert-memory. `compare`, `imatrix`,
`perplexity`, `edit` and `show` take them; `quantize`, `mlx` and `split` need the original.

example:
  %(prog)s Qwen3-30B-A3B-Q4_K_M.gguf Qwen3-30B-A3B-Q4_K_M-packed.gguf
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from .. import packing, source, target

    cli.begin()
    model = source.read(args.model)
    target.run([packing.plan(model, args.out)], model, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    from ..target import arguments

    parser = cli.Parser(
        "convert pack",
        description="Write a mixture of experts with each expert's matrices side by side, for --expert-memory. "
        "A split model becomes one file. OUT appears when it is complete.",
        epilog=EPILOG,
    )
    cli.model_argument(parser, "model")
    parser.add_argument("out", type=Path, metavar="OUT.gguf", help="the file to write")
    arguments(parser)
    return parser
