"""The loop: each step extends all texts that run. It knows token ids only, and works in the caller's thread."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import replace
from types import FrameType

import mlx.core as mx
import numpy as np

from .. import ops
from ..batch import Batch
from ..interrupts import often_uninterrupted, uninterrupted
from ..models.base import LanguageModel
from ..sample.arrays import Array
from ..sample.checks import check_integer
from ..state.model import ModelStates
from ..state.sequence import Sequence as Past
from .choosing import Choice, forward
from .request import Event, Request
from .scheduler import Job, Scheduler
from .stats import Stats
from .text import Chosen, Made, Text, joined


class Engine:
    """Extends the texts of many requests; they may come and go at any time between steps.

    On a lazy backend a step is worked out before the tokens of the one before are read, which `step` gives only then.

    model: from `load`
    states: of the model, where others use them too; None: new ones, with
        blocks: of each window group; None: as many as are needed
        slots: for recurrent states, as of `make_states`
        kv_bits: 16, or 8, which takes half the memory for keys and values and is less exact
    chunk: prompt tokens in a step in which nothing else runs
    chunk_beside: prompt tokens in a step beside texts that run
    most: texts that run at the same time, forks not counted; None: as many as fit
    Use: `submit`, then `step` while `is_busy`; at the end `close`.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        states: ModelStates | None = None,
        blocks: int | None = None,
        slots: int | None = None,
        kv_bits: int = 16,
        chunk: int = 512,
        chunk_beside: int = 64,
        most: int | None = None,
    ) -> None:
        for name, value in [("chunk", chunk), ("chunk_beside", chunk_beside)]:
            check_integer(name, value, 1)
        for name, given in [("blocks", blocks), ("slots", slots), ("most", most)]:
            if given is not None:
                check_integer(name, given, 1)
        self._model = model
        self._states = states or model.make_states(blocks=blocks, slots=slots, kv_bits=kv_bits)
        self._scheduler = Scheduler(self._states, chunk=chunk, chunk_beside=chunk_beside, most=most)
        self._forward = forward(model)
        self._texts: dict[int, Text] = {}
        # tokens that are not read yet, in order
        self._pending: deque[tuple[Text, Chosen]] = deque()
        self._cancelled: set[int] = set()
        self._events: list[Event] = []  # not yet given
        self._next = 0
        self._working: FrameType | None = None  # of `step`, while it runs
        self._stats = Stats()

    @property
    def is_busy(self) -> bool:
        """Whether a step has something to do or to say."""
        return bool(self._texts or self._events)

    def submit(self, request: Request, n: int = 1, *, past: Past | None = None) -> list[int]:
        """Queue n texts, whose prompt is computed once; returns their ids.

        past: a sequence of the engine's states, which the prompt continues. It is extended in place and stays the
            caller's; the text begins at once. Only with n = 1, and pools that grow.
        Raises ValueError for token ids outside the vocabulary, and if a text would not fit the model's context or the
        pool.
        """
        check_integer("n", n, 1)
        if past is not None:
            self._check_past(past, n)
        self._check_request(request, 0 if past is None else past.position)
        ids = range(self._next, self._next + n)
        prompt = [*(() if past is None else past.tokens), *request.prompt]
        texts = []
        for index, id in enumerate(ids):
            job = Job(id, prompt.copy(), request.limit, request.priority, past, past is not None)
            texts.append(Text(request, job, index))
        texts[0].job.forks = [text.job for text in texts[1:]]
        with uninterrupted():
            self._scheduler.add(texts[0].job)
            self._texts.update(zip(ids, texts, strict=True))
            self._next += n
        return list(ids)

    def _check_past(self, past: Past, n: int) -> None:
        """Raises ValueError for one that could hold others up, or that another text extends."""
        if n > 1:
            raise ValueError(f"n is {n} with a past, expected 1")
        if any(state.pool.size is not None for state in self._states.states):
            raise ValueError("a past in a pool that has a size, expected one that grows")
        if any(text.job.past is past for text in self._texts.values()):
            raise ValueError("the past is being extended already, expected another one")

    def _check_request(self, request: Request, held: int) -> None:
        args = self._model.args
        if held + len(request.prompt) + request.limit > args.context_length:
            before = f" after {held} that are held" if held else ""
            raise ValueError(
                f"{len(request.prompt)} prompt tokens{before} and {request.limit} to generate, expected at "
                f"most the {args.context_length} of the model's context"
            )
        bias = request.bias or {}
        for what, ids in [("the prompt", request.prompt), ("the bias", bias)]:
            for token in ids:
                if not 0 <= token < args.vocab_size:
                    raise ValueError(
                        f"{what} has token {token}, expected 0 to {args.vocab_size - 1}"
                    )

    def cancel(self, id: int) -> None:
        """End a text; the next step says so. Nothing happens if it has ended."""
        if id in self._texts:
            self._cancelled.add(id)

    def step(self) -> list[Event]:
        """Compute a token more of each text that runs, and a chunk of prompts.

        An error of one text ends that text. Raises what concerns all, such as a changed model file, and RuntimeError if
        it is called by a function of a request. The step after an interrupted one goes on where that was, and gives its
        events too.
        """
        self._check_outside("step")
        self._working = sys._getframe()
        try:
            with often_uninterrupted():
                self._work()
        finally:
            self._working = None
        events: list[Event] = []
        try:
            events, self._events = self._events, events
            return events
        except BaseException:  # Ctrl-C before they are given
            self._events = events + self._events
            raise

    def _check_outside(self, what: str) -> None:
        """Raises RuntimeError if a function of a request calls, as it must not change what goes on.

        The frame of `step` says so even if an interruption kept it from being forgotten.
        """
        frame = sys._getframe() if self._working is not None else None
        while frame is not None:
            if frame is self._working:
                raise RuntimeError(f"{what} is called by a function of a request, within a step")
            frame = frame.f_back

    def _work(self) -> None:
        """A step, whose events are noted."""
        self._end_cancelled()
        if not ops.is_lazy():
            self._read(len(self._pending))  # some are left after an interruption
        rows = self._scheduler.plan()
        if rows and self._model.check_file is not None:
            self._model.check_file(thorough=False)
        try:
            made = self._compute(rows) if rows else None
        except OSError:  # of experts that are read from the file
            self._compute_each(rows)
            made = None
        earlier = len(self._pending)
        if made is not None:
            if any(text.follower is not None for text, _ in self._pending):
                self._stats.waits += 1
                mx.async_eval(made.arrays)
                self._read(earlier)
                earlier = 0
            self._choose(rows, made)
        self._read(earlier if made is not None and ops.is_lazy() else len(self._pending))

    def _compute(self, rows: dict[Job, int]) -> Made | None:
        """What a pass over the planned rows gives; None if no text is read to its end."""
        tokens = self._tokens(rows)
        batch = self._states.batch([(_past(job), count) for job, count in rows.items()], tokens)
        is_last = any(count == job.unread for job, count in rows.items())
        made = Made(*self._forward(batch)) if is_last else None
        if made is None:
            self._model.body(batch)
            if ops.is_lazy():
                mx.eval([x for storage in self._states.storages for x in storage.arrays])
                mx.clear_cache()  # a chunk's buffers seldom fit the next one, whose attention is longer
        with uninterrupted():
            self._advance(batch, rows)
        self._stats.steps += 1
        self._stats.batch_sizes[len(rows)] += 1
        self._stats.prompt_tokens += sum(n for job, n in rows.items() if not job.decodes)
        return made

    def _compute_each(self, rows: dict[Job, int]) -> None:
        """Compute and choose for each text by itself; those end for which the file still cannot be read."""
        for job, count in rows.items():
            try:
                made = self._compute({job: count})
            except OSError as error:
                self._events.append(self._end(job.number, "error", error=error))
            else:
                if made is not None:
                    self._choose({job: count}, made)
                    self._read(len(self._pending))  # the next pass overwrites what this one gave

    def _advance(self, batch: Batch, rows: dict[Job, int]) -> None:
        """Say that rows are computed, and which tokens they have, as far as that is known."""
        starts = [_past(job).position for job in rows]
        batch.advance()
        if isinstance(batch.tokens, np.ndarray):
            return
        for start, (job, count) in zip(starts, rows.items(), strict=True):
            if known := job.tokens[start : start + count]:
                self._states.note(_past(job), known)

    def _tokens(self, rows: dict[Job, int]) -> Array:
        """The ids (n,) of planned rows, one job after another; MLX's if some are not known."""
        found: list[int | Chosen] = []
        for job, count in rows.items():
            start = _past(job).position
            stop, known = start + count, len(job.tokens)
            found += job.tokens[start:stop]
            if stop > known:
                found += self._texts[job.number].chosen[max(start - known, 0) : stop - known]
        return joined(found)

    def _choose(self, rows: dict[Job, int], made: Made) -> None:
        """Choose a token after each text that is read. On a lazy backend that begins to work."""
        lazy = made.arrays
        for row, job in enumerate(rows):
            if job.unread or job.number not in self._texts:
                continue
            forks = self._scheduler.fork(job) if job.forks else []
            self._stats.forks += len(forks)
            for each in [job, *forks]:
                text = self._texts[each.number]
                chosen = text.next(made, row)
                lazy += chosen.arrays
                with uninterrupted():
                    self._pending.append((text, chosen))
                    text.add(chosen)
        if ops.is_lazy():
            mx.async_eval(lazy)

    def _read(self, count: int) -> None:
        """Read so many tokens that are chosen; waits for them."""
        for _ in range(count):
            text, chosen = self._pending[0]
            error = None
            is_live = text.job.number in self._texts  # else it ended while this was worked out
            try:
                token = chosen.value if is_live else -1
            except Exception as found:
                if not isinstance(found, ValueError) and found is not chosen.error:
                    raise
                error = found
            with uninterrupted():
                self._pending.popleft()
                if error is not None:
                    self._events.append(self._end(text.job.number, "error", error=error))
                elif is_live:
                    self._events += self._extend(text, chosen, token)

    def _extend(self, text: Text, chosen: Chosen, token: int) -> list[Event]:
        """Take the next token of a text, now that it is known, and those that have to follow it."""
        job = text.job
        text.know(token)
        past = job.past
        if past is not None and len(past.tokens) < min(past.position, len(job.tokens)):
            self._states.note(past, [token])  # its row is computed already
        choice = chosen.choice if text.request.logprobs else None
        events: list[Event] = []
        try:
            forced = text.follow(token)
            events.append(self._taken(text, token, choice))
            for each in forced:
                if events[-1].finish_reason is not None:
                    break
                text.force(each)
                events.append(self._taken(text, each))
        except Exception as error:  # noqa: BLE001 - callers' functions raise anything, and others go on
            events.append(self._end(job.number, "error", error=error))
        return events

    def _taken(self, text: Text, token: int, choice: Choice | None = None) -> Event:
        """The event of a token that the text has taken, which may be its last one."""
        job = text.job
        self._stats.generated_tokens += 1
        has_stopped = text.request.stops(token)
        if text.follower is not None and text.follower.must_end:
            has_stopped = True
            if choice is not None:
                choice.is_end = True
        if has_stopped or len(job.tokens) == job.prompt + job.limit:
            reason = "stop" if has_stopped else "length"
            return self._end(job.number, reason, token=token, choice=choice)
        return Event(job.number, token, choice=choice, hits=job.hits or 0)

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
            job = self._texts.pop(id).job
            self._scheduler.remove(job)
        self._stats.cancelled += reason == "cancelled"
        self._stats.errors += reason == "error"
        return Event(id, token, reason, error, choice, job.hits or 0)

    def _end_cancelled(self) -> None:
        for id in sorted(self._cancelled):
            with uninterrupted():
                self._cancelled.discard(id)
                if id in self._texts:
                    self._events.append(self._end(id, "cancelled"))

    def prepare(self, sequences: int = 1) -> None:
        """Do once what is slow the first time: allocate blocks, and make what passes of 1 to `sequences` texts need.

        Raises ValueError unless `sequences` is at least 1, and OutOfBlocksError if so many do not fit the pool.
        """
        check_integer("sequences", sequences, 1)
        pasts = [self._states.begin() for _ in range(sequences)]
        try:
            for count in range(1, sequences + 1):
                rows = [(past, 1) for past in pasts[:count]]
                made = self._forward(self._states.batch(rows, np.zeros(count, np.int64)))
                mx.eval([x for x in made if isinstance(x, mx.array)])
        finally:
            for past in pasts:
                self._states.free(past)

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

    @uninterrupted()
    def close(self) -> None:
        """End all texts, without events. Raises RuntimeError if a function of a request calls it."""
        self._check_outside("close")
        self._cancelled.clear()
        self._events.clear()
        self._pending.clear()
        for text in self._texts.values():
            self._scheduler.remove(text.job)
        self._texts.clear()


def _past(job: Job) -> Past:
    assert job.past is not None
    return job.past
