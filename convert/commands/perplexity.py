"""`perplexity MODEL TEXT`: how well a model predicts a text."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli

from .. import chunks

if TYPE_CHECKING:
    from mlx_ferrum.models.base import LanguageModel

    from ..perplexity import Loss

EPILOG = """\
The text is cut into chunks of tokens. The model reads each chunk on its own and is scored on the second
half of it, so that every scored token has at least half a chunk of context. Perplexity is e to the mean loss
in nats; lower is better. Compare perplexities only between models with the same tokenizer, on the same text
and chunks. The numbers equal those of llama-perplexity, up to rounding. The value after +- is a standard
error; the difference between two models on the same text is known far more precisely (see `compare`).

examples:
  %(prog)s model-q4.gguf text.txt
  %(prog)s model-q4.gguf text.txt --chunks 20 --json
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    cli.import_engine()
    model, tokenizer = cli.load_model(args)
    size = chunks.size(args.chunk_size, model.args.context_length)
    pieces = chunks.read(args.text, tokenizer, size, args.chunks)
    with chunks.progress(pieces, args.text.name) as read:
        loss = _measured(args.model, model, read)
    if args.json:
        print(json.dumps(_as_json(args.model, loss, len(pieces), size)))
        return 0
    print(f"perplexity {loss.perplexity:.4f} +- {loss.perplexity_error:.4f}")
    print(f"loss       {loss.mean:.4f} +- {loss.error:.4f} nats per token")
    print(f"scored     {loss.tokens} tokens, in {len(pieces)} chunks of {size}")
    return 0


def _measured(name: str, model: LanguageModel, pieces: Iterable[Sequence[int]]) -> Loss:
    from .. import perplexity

    try:
        return perplexity.measure(model, pieces)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _as_json(model: str, loss: Loss, count: int, size: int) -> dict[str, object]:
    """Errors are null where a single token was scored."""
    is_known = math.isfinite(loss.error)
    return {
        "model": model,
        "perplexity": loss.perplexity,
        "perplexity_error": loss.perplexity_error if is_known else None,
        "loss": loss.mean,
        "loss_error": loss.error if is_known else None,
        "tokens": loss.tokens,
        "chunks": count,
        "chunk_size": size,
    }


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "convert perplexity",
        description="Measure how well a model predicts a text: perplexity, with its error.",
        epilog=EPILOG,
    )
    cli.model_argument(parser, "model")
    parser.add_argument("text", type=Path, metavar="TEXT", help="a text file")
    chunks.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.backend_arguments(parser)
    cli.expert_argument(parser)
    return parser
