"""`--batch` and `--out` of the command line of text generation."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_ferrum import cli, progress
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tokenizer import Tokenizer

from ..constraint import constraint
from ..messages import check_template, prompt_text
from ..prompt import encode_prompt
from ..stream import biases
from ..wired import resident
from .journal import Journal
from .prompts import read_prompts
from .work import Options, Work

# Arguments on which the results do not depend, or that are noted in another way.
ELSEWHERE = {"batch", "out", "model", "sequences", "prefill_step_size", "backend", "threads"}


def run(args: argparse.Namespace) -> int:
    """Run the command line; returns the exit code."""
    lines = read_prompts(args.batch)
    out = Path(args.out)
    cli.check_writable(out)
    cli.check_not_read(out, [Path(args.batch)])
    model, tokenizer = cli.load_model(args)
    check_template(args, tokenizer)
    with Journal(out, _about(args, model)) as journal, resident(model):
        if journal.count and not args.quiet:
            print(f"{journal.count} of {len(lines)} results are there already", file=sys.stderr)
        work = Work(model, tokenizer, _options(args, model, tokenizer))
        first = journal.count
        show = not args.quiet
        with progress.bar(total=len(lines), initial=first, unit="prompt", show=show) as bar:
            for result in work.results(lines[first:], first):
                journal.add(result)
                bar.update()
        journal.finish()
    if journal.failed:
        raise ValueError(f'{journal.failed} of {len(lines)} prompts failed: see "error" in {out}')
    return 0


def _about(args: argparse.Namespace, model: LanguageModel) -> dict[str, str]:
    """What results depend on."""
    options = {key: x for key, x in vars(args).items() if key not in {*ELSEWHERE, "quiet"}}
    return {
        "prompts": hashlib.sha256(Path(args.batch).read_bytes()).hexdigest(),
        "model": model.fingerprint,
        "options": json.dumps(options, sort_keys=True, default=str),
    }


def _options(args: argparse.Namespace, model: LanguageModel, tokenizer: Tokenizer) -> Options:
    def encode(prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        return encode_prompt(tokenizer, prompt_text(args, tokenizer, prompt))

    bias = dict(args.logit_bias)
    return Options(
        encode=encode,
        max_tokens=args.max_tokens,
        sampler=cli.sampler_options(args, tokenizer),
        processors=[*biases(tokenizer, bias, args.ignore_eos), *cli.processors(args)],
        stop=args.stop,
        constraint=constraint(args, model, tokenizer),
        kv_bits=args.kv_bits,
        chunk=args.prefill_step_size,
        sequences=args.sequences,
    )
