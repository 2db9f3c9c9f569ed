"""`quantize IN OUT.gguf --type q4_k_m`: a GGUF model in a smaller type."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli, notice

from .. import asked

if TYPE_CHECKING:
    from mlx_ferrum import gguf

    from ..quantizing import Options
    from ..sizing import Budget

CHUNKS = 4  # of the text, by default
EPILOG = """\
recipes of --type, with the bits per weight of the main type; _s, _m and _l give more bits to few, some or
many other tensors:
  f32, bf16, f16        32, 16, 16   no loss from a model of that type
  q8_0                  8.5          hardly any loss
  q6_k                  6.6
  q5_k_m, q5_k_s        5.5          also q5_0, q5_1
  q4_k_m, q4_k_s        4.5          the usual choice; also q4_0, q4_1, iq4_nl
  iq4_xs                4.3          a little smaller than q4_k_s
  q3_k_l, _m, _s        3.4          for models that do not fit otherwise
  q2_k                  2.6          a large loss; use --imatrix
  mxfp4_moe             4.3          experts in MXFP4, all else in q8_0

A recipe gives every tensor the type that llama-quantize gives it. Where the length of a row is not a
multiple of the type's block, a type with blocks of 32 weights is used. Norms, routers and vectors stay as
they are. Memory: the file is mapped, and about 100 MB are used in addition.

--budget: the model reads the text once for each tensor, with only that tensor in fewer bits. The change of
its predictions, in nats per token, is the tensor's sensitivity. Bits go to the tensors where they lower the
sum of these changes most. A table shows what was measured and chosen. Measuring takes as long as reading
the text once for each tensor.

examples:
  %(prog)s model-f16.gguf model-q4.gguf --type q4_k_m
  %(prog)s model-f16.gguf model-q2.gguf --type q2_k --imatrix imatrix.gguf --effort best
  %(prog)s model-f16.gguf model.gguf --type q4_k_s --tensor-type 'ffn_down=q6_k' --dry-run
  %(prog)s model-f16.gguf model.gguf --budget 4.5 --text text.txt --sensitivity model.json
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from mlx_ferrum.backends import cpu

    from .. import quantizing, source, target

    cli.begin()
    model = source.read_stacked(args.model)
    others = [args.imatrix, args.text, args.sensitivity]
    read = [*(part.path for part in model.files), *(path for path in others if path is not None)]
    target.check([args.out], read, args.force)
    options = _options(args, model)
    plan = quantizing.plan(model, options)
    values = quantizing.metadata(source.metadata(model), options.recipe, options.importance)
    for line in plan.notices:
        notice.warn(line)
    files = quantizing.files(args.out, values, plan, model if args.keep_split else None)
    if args.threads is not None and not args.dry_run:
        cpu.prepare(args.threads)
    target.run(files, model, args)
    return 0


def _options(args: argparse.Namespace, model: gguf.GGUF) -> Options:
    from .. import quantizing, sizing

    wanted = asked.read(args)
    if args.budget is None:
        return quantizing.Options(args.type, *wanted)
    if args.text is None:
        raise ValueError("--budget: expected --text FILE, a text to measure sensitivity on")
    if args.sensitivity is not None and not args.sensitivity.exists():
        cli.check_writable(args.sensitivity)
    text = sizing.Text(args.text, args.chunks or CHUNKS, args.chunk_size)
    size = (
        args.budget
        if wanted.importance is None
        else args.budget.without(wanted.importance.origin_bytes)
    )
    sized = sizing.choose(model, size, text, wanted.overrides, args.sensitivity)
    print(*sizing.report(model, sized), sep="\n")
    return quantizing.Options(sizing.recipe_of(sized), *wanted, types=sized.types)


def _budget(text: str) -> Budget:
    from ..sizing import Budget

    try:
        return Budget.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _recipe(text: str) -> str:
    from ..recipes import RECIPES

    name = text.lower()
    if name not in RECIPES:
        raise argparse.ArgumentTypeError(f"expected {', '.join(RECIPES)}; found {text!r}")
    return name


def _parser() -> argparse.ArgumentParser:
    from ..target import arguments

    parser = cli.Parser(
        "convert quantize",
        description="Write a GGUF model in another type. Start from F32, BF16 or F16 if you can: quantizing a "
        "quantized model loses more. Tensors that already have the wanted type are copied bit for bit. A split "
        "model becomes one file. OUT appears when it is complete.",
        epilog=EPILOG,
    )
    cli.model_argument(parser, "model")
    parser.add_argument("out", type=Path, metavar="OUT.gguf", help="the file to write")
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--type", type=_recipe, metavar="TYPE", help="the recipe; see below")
    size.add_argument(
        "--budget",
        type=_budget,
        metavar="SIZE",
        help="instead of a recipe: bits per weight (4.5) or the size of the file (18GB, 17.5GiB); each tensor "
        "gets its type by measured sensitivity",
    )
    asked.arguments(parser)
    add(
        "--keep-split",
        action="store_true",
        help="write as many files as the model has: OUT-00001-of-…",
    )
    _budget_arguments(parser)
    arguments(parser)
    return parser


def _budget_arguments(parser: argparse.ArgumentParser) -> None:
    from .. import chunks

    group = parser.add_argument_group("for --budget")
    group.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="text like that which the model should handle well",
    )
    chunks.arguments(group, CHUNKS)
    group.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="keep the measurements in FILE, or use those in it, so that another budget needs no new ones",
    )
