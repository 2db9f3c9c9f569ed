"""The loop: each step extends all texts that run. It knows token ids only, and works in the caller's thread."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from mlx_ferrum.interrupts import uninterrupted
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import greedy
from mlx_ferrum.sample.arrays import Array
from mlx_ferrum.sample.checks import check_integer

from .choosing import Choice, Chooser, forward
from .logits import logit_range
from .request import Event, Request
from .scheduler import Job, Scheduler


@dataclass
class Stats:
    """Figures of an engine since it was made.

    steps: forward passes
    prompt_tokens: computed, after a preemption again
    hits: positions that did not have to be computed, because the pool had them
    generated_tokens: of all texts
    batch_sizes: number of sequences in a step -> number of steps
    preemptions, forks, cancelled, errors: how many
    waiting, running: texts, now
    blocks: for each pool the blocks that are held now, and its size or None
    """

    steps: int = 0
    prompt_tokens: int = 0
    hits: int = 0
    generated_tokens: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    preemptions: int = 0
    forks: int = 0
    cancelled: int = 0
    errors: int = 0
    waiting: int = 0
    running: int = 0
    blocks: list[tuple[int, int | None]] = field(default_factory=list)


@dataclass(eq=False)
class _Text:
    job: Job
    request: Request
    choose: Chooser

    @property
    def is_plain(self) -> bool:
        """Whether what `ops.choose` gives is all that is needed."""
        is_greedy = self.choose.sampler is greedy and not self.choose.processors
        return is_greedy and not self.request.logprobs


class Engine:
    """Extends the texts of many requests; they may come and go at any time between steps.

    model: from `load`
    blocks: of each window group; None: as many as are needed
    kv_bits: 16, or 8, which takes half the memory for keys and values and is less exact
    chunk: prompt tokens in a step in which nothing else runs
    chunk_beside: prompt tokens in a step beside texts that run
    Use: `submit`, then `step` while `is_busy`; at the end `close`.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        blocks: int | None = None,
        kv_bits: int = 16,
        chunk: int = 512,
        chunk_beside: int = 64,
    ) -> None:
        self._model = model
        self._states = model.make_states(blocks=blocks, kv_bits=kv_bits)
        self._scheduler = Scheduler(self._states, chunk=chunk, chunk_beside=chunk_beside)
        self._forward = forward(model)
        self._texts: dict[int, _Text] = {}
        self._cancelled: set[int] = set()
        self._events: list[Event] = []  # of a step that was interrupted
        self._next = 0
        self._stats = Stats()

    @property
    def is_busy(self) -> bool:
        """Whether a step has something to do or to say."""
        return bool(self._texts or self._events)

    def submit(self, request: Request, n: int = 1) -> list[int]:
        """Queue n texts, whose prompt is computed once; returns their ids.

        Raises ValueError for token ids outside the vocabulary, and if a text would not fit the model's context or the
        pool.
        """
        check_integer("n", n, 1)
        self._check_request(request)
        ids = range(self._next, self._next + n)
        texts = [self._text(request, id, index) for index, id in enumerate(ids)]
        texts[0].job.forks = [text.job for text in texts[1:]]
        with uninterrupted():
            self._scheduler.add(texts[0].job)
            self._texts.update(zip(ids, texts, strict=True))
            self._next += n
        return list(ids)

    def _check_request(self, request: Request) -> None:
        args = self._model.args
        if len(request.prompt) + request.limit > args.context_length:
            raise ValueError(
                f"{len(request.prompt)} prompt tokens and {request.limit} to generate, expected at "
                f"most the {args.context_length} of the model's context"
            )
        bias = request.bias or {}
        for what, ids in [("the prompt", request.prompt), ("the bias", bias)]:
            for token in ids:
                if not 0 <= token < args.vocab_size:
                    raise ValueError(
                        f"{what} has token {token}, expected 0 to {args.vocab_size - 1}"
                    )

    @staticmethod
    def _text(request: Request, id: int, index: int) -> _Text:
        prompt = [int(token) for token in request.prompt]
        chooser = Chooser(request.make_sampler(index), request.make_processors(), prompt)
        return _Text(Job(id, prompt, request.limit, request.priority), request, chooser)

    def cancel(self, id: int) -> None:
        """End a text; the next step says so. Nothing happens if it has ended."""
        if id in self._texts:
            self._cancelled.add(id)

    def step(self) -> list[Event]:
        """Compute a token more of each text that runs, and a chunk of prompts.

        An error of one text ends that text. Raises what concerns all, such as a changed model file. The step after an
        interrupted one goes on where that was, and gives its events too.
        """
        cancelled, self._cancelled = self._cancelled & self._texts.keys(), set()
        self._events += [self._end(id, "cancelled") for id in sorted(cancelled)]
        if rows := self._scheduler.plan():
            self._advance(rows)
        events, self._events = self._events, []
        return events

    def _advance(self, rows: dict[Job, int]) -> None:
        """Compute rows, and choose a token after each text that is read."""
        logits, likeliest, ranges = self._compute(rows)
        likeliest, ranges = np.asarray(likeliest), np.asarray(ranges)
        for i, job in enumerate(rows):
            if job.unread:
                continue
            forks = self._scheduler.fork(job)
            self._stats.forks += len(forks)
            row = slice(i, i + 1)
            found = logits[row], likeliest[row], ranges[row]
            for each in [job, *forks]:
                self._events.append(self._extend(self._texts[each.number], found))

    def _compute(self, rows: dict[Job, int]) -> tuple[Array, Array, Array]:
        """What `forward` gives for the planned rows."""
        if self._model.check_file is not None:
            self._model.check_file(thorough=False)
        pasts, tokens = [], []
        for job, count in rows.items():
            assert job.past is not None
            start = job.past.position
            pasts.append((job.past, count))
            tokens += job.tokens[start : start + count]
        batch = self._states.batch(pasts, np.array(tokens))
        found = self._forward(batch)
        batch.advance()
        self._stats.steps += 1
        self._stats.batch_sizes[len(rows)] += 1
        self._stats.prompt_tokens += sum(n for job, n in rows.items() if not job.decodes)
        return found

    def _extend(self, text: _Text, found: tuple[Array, Array, Array]) -> Event:
        """The next token of a text; found: what `forward` gives, for its row."""
        job, request = text.job, text.request
        try:
            token, choice = _chosen(text, found)
            job.tokens.append(token)
            job.decodes = True
            self._stats.generated_tokens += 1
            has_stopped = request.stops(token)
        except Exception as error:  # noqa: BLE001 - callers' functions raise anything, and others go on
            return self._end(job.number, "error", error=error)
        if has_stopped or len(job.tokens) == job.prompt + job.limit:
            reason = "stop" if has_stopped else "length"
            return self._end(job.number, reason, token=token, choice=choice)
        return Event(job.number, token, choice=choice)

    def _end(
        self,
        id: int,
        reason: str,
        *,
        token: int | None = None,
        error: Exception | None = None,
        choice: Choice | None = None,
    ) -> Event:
        with uninterrupted():
            self._scheduler.remove(self._texts.pop(id).job)
        self._stats.cancelled += reason == "cancelled"
        self._stats.errors += reason == "error"
        return Event(id, token, reason, error, choice)

    def stats(self) -> Stats:
        """Figures so far."""
        scheduler = self._scheduler
        self._stats.hits, self._stats.preemptions = scheduler.hits, scheduler.preemptions
        self._stats.running = len(scheduler.live)
        self._stats.waiting = len(self._texts) - len(scheduler.live)
        pools = [state.pool for state in self._states.states]
        self._stats.blocks = [(sum(map(bool, pool.references)), pool.size) for pool in pools]
        sizes = self._stats.batch_sizes.copy()
        return replace(self._stats, batch_sizes=sizes)

    def close(self) -> None:
        """End all texts, without events."""
        self._cancelled.clear()
        self._events.clear()
        for text in self._texts.values():
            self._scheduler.remove(text.job)
        self._texts.clear()


def _chosen(text: _Text, found: tuple[Array, Array, Array]) -> tuple[int, Choice | None]:
    """The token, and what its log-probabilities are made of if they were asked for. Raises ValueError."""
    logits, likeliest, ranges = found
    position, vocab_size = len(text.job.tokens), logits.shape[-1]
    if text.is_plain:
        logit_range(ranges, position, vocab_size).check()
        return int(likeliest[0]), None
    choice = text.choose(found, position)
    if not 0 <= choice.value < vocab_size:
        raise ValueError(f"the sampler gave token {choice.value}, expected 0 to {vocab_size - 1}")
    return choice.value, choice if text.request.logprobs else None
