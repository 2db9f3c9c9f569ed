"""Many prompts, and what becomes of each, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from mlx_ferrum import entry
from mlx_ferrum.engine import Engine, Event, Request
from mlx_ferrum.engine.constraint import Constraint
from mlx_ferrum.engine.request import mixed_seed
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor
from mlx_ferrum.tokenizer import Tokenizer

from ..step import token_limit
from ..stops import StopStrings
from ..stream import Text
from .prompts import Line

AHEAD = 2  # times as many texts are submitted as can run, so that none has to be waited for


@dataclass(frozen=True)
class Options:
    """How texts are made.

    encode: text or messages to token ids
    max_tokens: of a text whose line does not say it; -1 for as many as fit
    sampler: arguments of `make_sampler`; each text mixes its index into the seed
    stop: a text ends before the first of these strings
    constraint: what each text follows
    chunk: prompt tokens per pass
    sequences: texts that run at the same time
    """

    encode: Callable[[str | Sequence[Mapping[str, Any]]], list[int]]
    max_tokens: int
    sampler: Mapping[str, Any]
    processors: Sequence[Processor]
    stop: Sequence[str]
    constraint: Constraint | None
    kv_bits: int
    chunk: int
    sequences: int


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
            self.fail(event.error)
            return
        self.end = {
            "text": "".join(self.pieces),
            "finish_reason": event.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.tokens,
        }

    def fail(self, error: Exception) -> None:
        """Say why there is no text."""
        self.end = {"error": entry.describe(error)}


class Work:
    """Makes results."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, options: Options) -> None:
        self._model, self._tokenizer, self._options = model, tokenizer, options

    def results(self, lines: list[Line], first: int) -> Iterator[dict[str, Any]]:
        """Of all lines, in order; `first` is the index of the first one."""
        made = [_Result(first + i, line) for i, line in enumerate(lines)]
        todo = iter(zip(lines, made, strict=True))
        under_way: dict[int, _Result] = {}
        given = 0
        options = self._options
        engine = Engine(
            self._model,
            kv_bits=options.kv_bits,
            chunk=options.chunk,
            chunk_beside=options.chunk,
            most=options.sequences,
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
        while len(under_way) < AHEAD * self._options.sequences:
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
        options = self._options
        ids = options.encode(line.prompt)
        most = options.max_tokens if line.max_tokens is None else line.max_tokens
        result.limit = token_limit(self._model, 0, ids, most)
        result.prompt_tokens = len(ids)
        result.text = Text(self._tokenizer, StopStrings(options.stop), ids)
        seed = mixed_seed(options.sampler["seed"], result.head["index"])
        return Request(
            ids,
            result.limit,
            {**options.sampler, "seed": seed},
            processors=options.processors,
            ends=result.add,
            constraint=options.constraint,
        )
