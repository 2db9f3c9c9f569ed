"""`--batch`: texts after the prompts of a file, many at once, and the results in another file."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mlx_ferrum import cli, progress
from mlx_ferrum.engine import Engine, Event, Request
from mlx_ferrum.engine.request import mixed_seed
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tokenizer import Tokenizer

from .journal import Journal
from .messages import check_template, prompt_text
from .prompt import encode_prompt
from .prompts import Line, read_prompts
from .step import token_limit
from .stops import StopStrings
from .stream import Text, biases
from .wired import resident

AHEAD = 2  # times as many texts are submitted as can run, so that none has to be waited for
ELSEWHERE = {"batch", "out", "sequences", "prefill_step_size", "backend", "threads", "quiet"}


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
        work = _Work(args, model, tokenizer)
        with progress.bar(
            total=len(lines), initial=journal.count, unit="prompt", show=not args.quiet
        ) as bar:
            for result in work.results(lines[journal.count :], journal.count):
                journal.add(result)
                bar.update()
        journal.finish()
    if journal.failed:
        raise ValueError(f'{journal.failed} of {len(lines)} prompts failed: see "error" in {out}')
    return 0


def _about(args: argparse.Namespace, model: LanguageModel) -> dict[str, str]:
    """What results depend on."""
    options = {name: value for name, value in vars(args).items() if name not in ELSEWHERE}
    del options["model"]
    return {
        "prompts": hashlib.sha256(Path(args.batch).read_bytes()).hexdigest(),
        "model": model.fingerprint,
        "options": json.dumps(options, sort_keys=True, default=str),
    }


class _Result:
    """What becomes of a prompt."""

    def __init__(self, index: int, line: Line) -> None:
        self.head = {"index": index} | ({} if line.id is None else {"id": line.id})
        self.pieces: list[str] = []
        self.prompt_tokens = self.tokens = self.limit = 0
        self.text: Text | None = None
        self.end: dict[str, Any] | None = None

    def add(self, token: int) -> bool:
        """Take the next token; whether the text ends with it."""
        assert self.text is not None
        self.tokens += 1
        piece, has_stopped = self.text.add(token, self.tokens == self.limit)
        self.pieces.append(piece)
        return has_stopped

    def finish(self, event: Event) -> None:
        """Take the end of the text."""
        if event.error is not None:
            return self.fail(event.error)
        self.end = {
            "text": "".join(self.pieces),
            "finish_reason": event.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.tokens,
        }
        return None

    def fail(self, error: Exception) -> None:
        """Say why there is no text."""
        self.end = {"error": cli.describe(error)}


class _Work:
    """Makes results."""

    def __init__(
        self, args: argparse.Namespace, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        self._args, self._model, self._tokenizer = args, model, tokenizer
        self._sampler = cli.sampler_options(args, tokenizer)
        bias = dict(args.logit_bias)
        self._processors = [*biases(tokenizer, bias, args.ignore_eos), *cli.processors(args)]

    def results(self, lines: list[Line], first: int) -> Iterator[dict[str, Any]]:
        """Of all lines, in order; `first` is the index of the first one."""
        made = [_Result(first + i, line) for i, line in enumerate(lines)]
        todo = iter(zip(lines, made, strict=True))
        under_way: dict[int, _Result] = {}
        given = 0
        size = self._args.prefill_step_size
        engine = Engine(
            self._model,
            kv_bits=self._args.kv_bits,
            chunk=size,
            chunk_beside=size,
            most=self._args.sequences,
        )
        with closing(engine):
            while given < len(made):
                self._submit(engine, todo, under_way)
                for event in engine.step():
                    if event.finish_reason is not None:
                        under_way.pop(event.id).finish(event)
                while given < len(made) and (end := made[given].end) is not None:
                    yield made[given].head | end
                    made[given].pieces.clear()
                    given += 1

    def _submit(
        self, engine: Engine, todo: Iterator[tuple[Line, _Result]], under_way: dict[int, _Result]
    ) -> None:
        """Have enough texts in the engine."""
        while len(under_way) < AHEAD * self._args.sequences:
            line, result = next(todo, (None, None))
            if line is None or result is None:
                return
            try:
                [id] = engine.submit(self._request(line, result))
            except ValueError as error:
                result.fail(error)
            else:
                under_way[id] = result

    def _request(self, line: Line, result: _Result) -> Request:
        """Raises ValueError if the template refuses the prompt, or the model's context is too short."""
        args, tokenizer = self._args, self._tokenizer
        ids = encode_prompt(tokenizer, prompt_text(args, tokenizer, line.prompt))
        most = args.max_tokens if line.max_tokens is None else line.max_tokens
        result.limit = token_limit(self._model, 0, ids, most)
        result.prompt_tokens = len(ids)
        result.text = Text(tokenizer, StopStrings(args.stop), ids)
        seed = mixed_seed(self._sampler["seed"], result.head["index"])
        return Request(
            ids,
            result.limit,
            self._sampler | {"seed": seed},
            processors=self._processors,
            ends=result.add,
        )
