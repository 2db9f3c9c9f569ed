"""`quantize IN OUT.gguf --type q4_k_m`: a GGUF model in a smaller type."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli, notice

if TYPE_CHECKING:
    from mlx_ferrum import gguf
    from mlx_ferrum.blocks import Block

    from ..quantizing import Options
    from ..sizing import Budget

CHUNKS = 4  # of the text, by default
EFFORTS = ("fast", "normal", "best")
EPILOG = """\
types of --type (bits per weight of the main type; a letter after it: how many tensors get more):
  f32, bf16, f16        32, 16, 16   no loss from a model of that type
  q8_0                  8.5          hardly any loss
  q6_k                  6.6
  q5_k_m, q5_k_s        5.5          also q5_0, q5_1
  q4_k_m, q4_k_s        4.5          the usual choice; also q4_0, q4_1, iq4_nl
  iq4_xs                4.3          a little smaller than q4_k_s
  q3_k_l, _m, _s        3.4          for models that do not fit otherwise
  q2_k                  2.6          with much loss; use --imatrix
  mxfp4_moe             4.3          experts in MXFP4, all else in q8_0

Each recipe gives every tensor the type that llama-quantize gives it. Rows that the type's blocks do
not divide get a type of blocks of 32 weights. Norms, routers and vectors stay as they are. Memory: the
file is mapped, and about 100 MB on top.

--budget: the model reads the text once for each tensor with that tensor alone in fewer bits. How much
what it predicts changes, in nats per token, is its sensitivity; bits go where they lower the sum of those
most. That takes as long as reading the text so many times; the table says what was found and chosen.

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
    model = source.read(args.model)
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
    from .. import importance, quantizing, recipes, sizing

    overrides = recipes.Overrides(args.tensor_type, args.output_type, args.embedding_type)
    imatrix = None if args.imatrix is None else importance.read(args.imatrix)
    common = (overrides, imatrix, args.effort, args.threads)
    if args.budget is None:
        return quantizing.Options(args.type, *common)
    if args.text is None:
        raise ValueError("--budget: expected --text FILE, a text to measure sensitivity on")
    if args.sensitivity is not None and not args.sensitivity.exists():
        cli.check_writable(args.sensitivity)
    text = sizing.Text(args.text, args.chunks or CHUNKS, args.chunk_size)
    size = args.budget if imatrix is None else args.budget.without(imatrix.origin_bytes)
    sized = sizing.choose(model, size, text, overrides, args.sensitivity)
    print(*sizing.report(model, sized), sep="\n")
    return quantizing.Options(sizing.recipe_of(sized), *common, types=sized.types)


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


def _parser() -> argparse.ArgumentParser:
    from ..target import arguments

    parser = cli.Parser(
        "convert quantize",
        description="Write a GGUF model in another type. Best start from F32, BF16 or F16: what is "
        "quantized already loses more. Tensors that have the wanted type are copied bit for bit. A split model "
        "becomes one file. OUT appears when it is complete.",
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
        help="bits per weight (4.5) or the size of the file (18GB, 17.5GiB) instead: types by measured sensitivity",
    )
    add(
        "--imatrix",
        type=Path,
        metavar="FILE",
        help="importance of columns, a GGUF or .dat file of llama.cpp's format: errors count where they matter",
    )
    add(
        "--tensor-type",
        type=_pattern,
        action="append",
        default=[],
        metavar="REGEX=TYPE",
        help="the type of the tensors in whose names REGEX is found; repeatable, the first that is found counts",
    )
    add("--output-type", type=_block, metavar="TYPE", help="the type of the output matrix")
    add("--embedding-type", type=_block, metavar="TYPE", help="the type of the token embeddings")
    add(
        "--effort",
        choices=EFFORTS,
        default="normal",
        help="how long to search for the best blocks (default: normal)",
    )
    add(
        "--keep-split",
        action="store_true",
        help="write as many files as the model has: OUT-00001-of-…",
    )
    add("-t", "--threads", type=cli.positive, metavar="N", help="threads (default: all cores)")
    _budget_arguments(parser)
    arguments(parser)
    return parser


def _budget_arguments(parser: argparse.ArgumentParser) -> None:
    from .. import chunks

    group = parser.add_argument_group("for --budget")
    group.add_argument("--text", type=Path, metavar="FILE", help="what the model should do well")
    chunks.arguments(group, CHUNKS)
    group.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="keep what was measured there, or use what was: other budgets then take no time",
    )
