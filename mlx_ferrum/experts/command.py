"""The command line: runs a model over a text and says which experts it chose."""

from __future__ import annotations

import argparse
import json
import time
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
  %(prog)s model.gguf --prompt - --expert-memory 8GB --reads reads.png < letter.txt
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
        description="Count which experts each layer of a model chooses for the tokens of a text, and what has to be "
        "read for them where they do not all stay in memory.",
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
    add(
        "--reads",
        type=Path,
        metavar="FILE.png",
        help="draw hits, bytes read and waits of each layer, where experts are read from disk (--expert-memory)",
    )
    add(
        "--step",
        type=cli.positive,
        metavar="N",
        help=f"tokens of the text a pass (default: {CHUNK}; 1 where experts are read from disk, as in generation)",
    )
    add("--json", action="store_true", help="print one JSON object")
    cli.backend_arguments(parser)
    cli.expert_argument(parser)
    return parser


def _run(args: argparse.Namespace) -> int:
    from mlx_ferrum.generate import encode_prompt
    from mlx_ferrum.traffic import traffic

    from . import picture, reads, report
    from .choices import observe

    for path in (args.out, args.reads):
        if path is not None:
            drawing.check_installed()
            cli.check_writable(path)
    model, tokenizer = cli.load_model(args)
    experts = _experts(model, args.model)
    if args.reads is not None and model.streams is None:
        raise ValueError("--reads: nothing is read from disk, expected --expert-memory with a size")
    ids = encode_prompt(tokenizer, cli.read_prompt(args.prompt))
    step = args.step or (1 if model.streams else CHUNK)
    with observe(model) as layers:
        start = time.perf_counter()
        _pass_through(model, ids, args.tokens, tokenizer.eos_token_ids, step)
        seconds = time.perf_counter() - start
    used, title = experts.routing.used, f"{Path(args.model).name}: experts"
    tokens, found = layers[0].tokens, None
    if args.out is not None:
        picture.draw(layers, used, f"{title} chosen for {tokens} tokens", args.out)
    if model.streams is not None:
        found = reads.Reads(traffic(model.streams), experts.count, tokens, seconds)
    if found is not None and args.reads is not None:
        reads.draw(found, f"{title} read from disk for {tokens} tokens, {step} a pass", args.reads)
    if args.json:
        choices = {"model": args.model, **report.as_json(layers, used)}
        print(json.dumps(choices | ({} if found is None else {"reads": reads.as_json(found)})))
    else:
        lines = report.as_text(layers, used)
        print(*lines, *([] if found is None else ["", *reads.as_text(found)]), sep="\n")
    return 0


def _experts(model: LanguageModel, name: str) -> ExpertArgs:
    experts = model.args.experts
    if experts is None:
        raise ValueError(f"{name} has no experts: its architecture is {model.args.architecture}")
    return experts


def _pass_through(
    model: LanguageModel, ids: list[int], more: int, ends: frozenset[int], step: int
) -> None:
    """The prompt, `step` tokens a pass, then up to `more` tokens, greedily; an end token is the last.

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
    pieces = [ids[start : start + step] for start in range(0, len(ids), step)]
    for n in range(more + 1):
        for piece in pieces:
            batch = cache.batch(np.array([piece]))
            logits, token, extent = run(batch)
            batch.advance()
        logit_range(extent, len(ids) + n, logits.shape[-1]).check()
        if n == more or (pieces[0][-1] in ends and n):
            break
        pieces = [[int(np.asarray(token)[0])]]
