"""`mlx IN.gguf OUT/` and `mlx FOLDER/ OUT.gguf`: GGUF models as folders of mlx_lm, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_ferrum import cli, notice

EPILOG = """\
How each type of a GGUF file is stored in the folder:
  Q4_0, Q4_1          4 bits in groups of 32, the same weights
  Q5_0, Q5_1          5 bits in groups of 32, the same weights
  Q8_0                8 bits in groups of 32, the same weights
  MXFP4               mxfp4, the same weights
  Q4_K, Q5_K          4 and 5 bits in groups of 32; the same weights in float32
  Q6_K, Q3_K, Q2_K    8, 5 and 4 bits, quantized again
  IQ4_NL, IQ4_XS      6 bits, quantized again
  F16, BF16, F32      stay floats

Scales are float32, so that weights stay the same, and mlx_lm computes in float32. --dtype float16 makes the folder a
sixth smaller and halves mlx_lm's key-value cache, but MLX then rounds more, on a CPU much more.

examples:
  %(prog)s smollm2-135m SmolLM2-mlx/
  %(prog)s model-q4_0.gguf model-mlx/ --dtype float16
  %(prog)s model-f16.gguf model-mlx/ --bits 4 --group-size 64

Memory: the file is mapped; the largest matrix of the model and about 500 MB are used in addition.
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    cli.begin()
    if _is_folder(args.source):
        _refuse(args, "a GGUF file", "bits", "group_size", "dtype")
        return _to_gguf(args)
    _refuse(args, "a folder", "type")
    return _to_mlx(args)


def _refuse(args: argparse.Namespace, out: str, *options: str) -> None:
    """Raises ValueError for options of the other direction."""
    for name in options:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: has no meaning where {out} is written")


def _is_folder(text: str) -> bool:
    """Whether it is a folder of weights, and not one with a GGUF file in it."""
    return (Path(text) / "config.json").is_file()


def _to_gguf(args: argparse.Namespace) -> int:
    from .. import huggingface, quantizing, target

    target.check([args.out], [], force=False)
    options = None if args.type is None else quantizing.Options(args.type)
    plan = huggingface.plan(Path(args.source), options)
    target.run_plan(plan, args.out, args.dry_run)
    return 0


def _to_mlx(args: argparse.Namespace) -> int:
    from .. import folder, general, mlx_folder, output, source, tokenizer_json

    folder.check(args.out)
    model = source.read_stacked(args.source)
    plan = mlx_folder.plan(model, mlx_folder.Options(args.bits, args.group_size, args.dtype))
    texts = tokenizer_json.files(model.metadata, plan.config["max_position_embeddings"])
    texts["config.json"] = {**plan.config, **tokenizer_json.ids(model.metadata)}
    texts["README.md"] = general.card(model.metadata)
    if args.dry_run:
        print(*output.table(plan.modules), sep="\n")
        return 0
    folder.write(args.out, plan.modules, texts)
    model.check()
    for line in plan.errors.notices():
        notice.warn(line)
    size = sum(module.nbytes for module in plan.modules)
    print(f"{args.out}: {len(plan.modules)} modules, {size:,} bytes of weights in {plan.dtype}")
    return 0


def _parser() -> argparse.ArgumentParser:
    from .. import affine
    from ..recipes import RECIPES

    parser = cli.Parser(
        "convert mlx",
        description="Convert a GGUF model to a folder that mlx_lm loads, or such a folder to a GGUF file. Types that "
        "MLX has are repacked without loss; others are quantized again, and a line shows the error.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("source", metavar="MODEL", help="a GGUF file, or a folder for mlx_lm")
    add("out", type=Path, metavar="OUT", help="the folder, or the GGUF file, to write")
    add(
        "--bits",
        type=int,
        choices=affine.BITS,
        metavar="N",
        help="quantize matrices with more than N bits to N bits: 2, 3, 4, 5, 6 or 8",
    )
    add(
        "--group-size",
        type=int,
        choices=affine.GROUPS,
        metavar="N",
        help="how many weights share a scale, where matrices are quantized: 32, 64 or 128",
    )
    add(
        "--dtype",
        choices=affine.FLOATS,
        help="the type of scales and vectors, which is also that of mlx_lm's activations (default: float32, "
        "or the model's own where no matrix is quantized)",
    )
    add(
        "--type",
        type=str.lower,
        choices=RECIPES,
        metavar="TYPE",
        help="for a GGUF file: the recipe for matrices that no type holds exactly, as for `hf` "
        "(default: q8_0; floats stay)",
    )
    add("--dry-run", action="store_true", help="say what would be written, and write nothing")
    return parser
