"""The command line: runs a model over a text and says which experts it chose."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli, drawing

if TYPE_CHECKING:
    from mlx_ferrum.models.base import LanguageModel
    from mlx_ferrum.models.experts import ExpertArgs

CHUNK = 512  # prompt tokens a pass

EXAMPLES = """\
examples:
  %(prog)s tiny-moe --prompt "In the beginning" --tokens 200
  %(prog)s model.gguf --prompt - --out heat.png < letter.txt
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    cli.import_engine()
    return _run(args)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "experts",
        description="Count which experts each layer of a model chooses for the tokens of a text.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    cli.model_argument(parser, "model")
    add(
        *("-p", "--prompt"),
        required=True,
        type=cli.utf8,
        metavar="TEXT",
        help="the text, used without the chat template; '-' reads stdin",
    )
    add(
        *("-n", "--tokens"),
        type=cli.count,
        default=0,
        metavar="N",
        help="let the model add N tokens, always the most likely one, and count them too (default: 0)",
    )
    add("--out", type=Path, metavar="FILE.png", help="draw a heat map of layers and experts")
    add("--json", action="store_true", help="print one JSON object")
    cli.backend_arguments(parser)
    cli.expert_argument(parser)
    return parser


def _run(args: argparse.Namespace) -> int:
    from mlx_ferrum.generate import encode_prompt

    from . import picture, report
    from .choices import observe

    if args.out is not None:
        drawing.check_installed()
        cli.check_writable(args.out)
    model, tokenizer = cli.load_model(args)
    experts = _experts(model, args.model)
    ids = encode_prompt(tokenizer, cli.read_prompt(args.prompt))
    with observe(model) as layers:
        _pass_through(model, ids, args.tokens, tokenizer.eos_token_ids)
    used = experts.routing.used
    if args.out is not None:
        title = f"{Path(args.model).name}: experts chosen for {layers[0].tokens} tokens"
        picture.draw(layers, used, title, args.out)
    if args.json:
        print(json.dumps({"model": args.model, **report.as_json(layers, used)}))
    else:
        print(*report.as_text(layers, used), sep="\n")
    return 0


def _experts(model: LanguageModel, name: str) -> ExpertArgs:
    experts = model.args.experts
    if experts is None:
        raise ValueError(f"{name} has no experts: its architecture is {model.args.architecture}")
    return experts


def _pass_through(model: LanguageModel, ids: list[int], more: int, ends: frozenset[int]) -> None:
    """The prompt, then up to `more` tokens, greedily; an end token is the last.

    Raises ValueError if they do not fit the model's context, or the logits are NaN, infinite or all equal.
    """
    import numpy as np

    from mlx_ferrum.engine.choosing import forward
    from mlx_ferrum.engine.logits import logit_range

    context = model.args.context_length
    if len(ids) + more > context:
        raise ValueError(
            f"{len(ids)} tokens and {more} more do not fit the model's context of {context} tokens"
        )
    cache, run = model.make_cache(), forward(model)
    pieces = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    for n in range(more + 1):
        for piece in pieces:
            batch = cache.batch(np.array([piece]))
            logits, token, extent = run(batch)
            batch.advance()
        logit_range(extent, len(ids) + n, logits.shape[-1]).check()
        if n == more or (pieces[0][-1] in ends and n):
            break
        pieces = [[int(np.asarray(token)[0])]]
