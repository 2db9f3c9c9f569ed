"""`hf FOLDER OUT.gguf`: a Hugging Face folder or repository to a GGUF file, in one pass."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_ferrum import cli, notice

from .. import asked, target
from ..recipes import RECIPES

EPILOG = f"""types: {" ".join(RECIPES)}

examples:
  %(prog)s SmolLM2-135M-Instruct/ smollm2.gguf
  %(prog)s Qwen/Qwen3-30B-A3B qwen3-moe.gguf --type q4_k_m --dry-run
  %(prog)s SmolLM2-135M-Instruct/ smollm2.gguf --type q3_k_m --imatrix importance.gguf --effort best

Memory: the largest tensor of the output, and in float32 67 million weights or the
largest matrix of the checkpoint, whichever is more, three times.
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from .. import huggingface, quantizing

    cli.begin()
    read = [] if args.imatrix is None else [args.imatrix]
    target.check([args.out], read, args.force)  # before a download
    folder, name = _source(args.source)
    target.check([args.out], list(folder.iterdir()), args.force)
    options = quantizing.Options(args.type, *asked.read(args))
    plan = huggingface.plan(folder, options, name=name, pre=args.pre)
    for line in plan.notices:
        notice.warn(line)
    target.run_plan(plan, args.out, args.dry_run)
    return 0


def _source(text: str) -> tuple[Path, str | None]:
    """The folder of a model, and the name of its repository. Raises ValueError if there is no such model."""
    from mlx_ferrum.catalog import hub

    folder = Path(text)
    if folder.is_dir():
        return folder, None
    repo = text.removeprefix("hf:")
    if not hub.REPOSITORY.fullmatch(repo):
        raise ValueError(f"{text}: no such folder; expected a Hugging Face folder or owner/repo")
    return hub.snapshot(repo), repo


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "convert hf",
        description="Convert a model from Hugging Face, weights in safetensors and a tokenizer, to a "
        "GGUF file. The file appears under its name when it is complete.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("source", metavar="FOLDER", help="a folder, or owner/repo on the Hugging Face Hub")
    add("out", metavar="OUT.gguf", type=Path, help="the file to write")
    add(
        "--type",
        type=str.lower,
        choices=RECIPES,
        default="q4_k_m",
        metavar="TYPE",
        help="what weights become (default: q4_k_m); see below",
    )
    asked.arguments(parser)
    add("--pre", metavar="NAME", help="the pre-tokenizer, where it is not recognised")
    target.arguments(parser)
    return parser
