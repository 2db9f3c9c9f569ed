"""Which rows the next step computes. Bookkeeping over States: knows no model and no text.

A job waits until it is admitted, reads its tokens in chunks, and then decodes one row in each step. Pool full: the
newest job of the lowest priority is preempted; it waits again, and later reads its prompt and its own tokens.
"""

from __future__ import annotations

import operator
import sys
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import takewhile

from ..interrupts import uninterrupted
from ..state.pool import OutOfBlocksError
from ..state.sequence import Sequence as Past
from ..state.states import States

PATIENCE = 2  # preemptions after which a job is admitted before all others


@dataclass(eq=False)
class Job:
    """One text that is being extended.

    number: jobs with smaller ones came earlier
    tokens: of the prompt, then those generated; the owner appends each new one
    limit: how many tokens can be generated
    priority: higher ones go first
    past: what is computed of the tokens; None while the job waits
    is_kept: the past was there before the job, and outlives it; only over pools that grow
    decodes: whether the job computes a row in each step, or all that are unread
    chosen: 1 while the next token is chosen but not known, as on a lazy backend; else 0
    hits: positions of the prompt that did not have to be computed when the job first began
    forks: jobs with the same prompt, which go on from this one's past once it has read the prompt
    """

    number: int
    tokens: list[int]
    limit: int
    priority: int = 0
    past: Past | None = None
    is_kept: bool = False
    decodes: bool = False
    chosen: int = 0
    preemptions: int = 0
    hits: int | None = None
    forks: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def count(self) -> int:
        """Tokens so far, with one that is not known yet."""
        return len(self.tokens) + self.chosen

    @property
    def is_full(self) -> bool:
        """Whether the last token is chosen."""
        return self.count >= self.prompt + self.limit

    @property
    def unread(self) -> int:
        """Tokens that are not computed."""
        return self.count - (0 if self.past is None else self.past.position)

    @property
    def most(self) -> int:
        """Positions that are computed in the end: nothing reads the last token."""
        return self.prompt + self.limit - 1

    @property
    def is_urgent(self) -> bool:
        """Whether nothing else is admitted before this job decodes."""
        return self.preemptions >= PATIENCE and not self.decodes


def _rank(job: Job) -> tuple[int, int]:
    return -job.priority, job.number


def _turn(job: Job) -> tuple[bool, int, int]:
    return not job.is_urgent, *_rank(job)


class Scheduler:
    """Admits, orders and preempts jobs.

    chunk: prompt tokens in a step in which nothing decodes
    chunk_beside: prompt tokens in a step beside jobs that decode
    most: jobs that are live at the same time; None: as many as fit
    hits: positions that did not have to be computed, because the pool had them
    preemptions: so far
    """

    def __init__(
        self, states: States, *, chunk: int = 512, chunk_beside: int = 64, most: int | None = None
    ) -> None:
        if chunk < 1 or chunk_beside < 1:
            raise ValueError(f"chunks of {chunk} and {chunk_beside} tokens, expected at least 1")
        self._states, self._chunk, self._beside = states, chunk, chunk_beside
        self._most = sys.maxsize if most is None else most
        self.waiting: list[Job] = []  # in the order in which they are admitted
        self.live: list[Job] = []
        self.hits = self.preemptions = 0

    def add(self, job: Job) -> None:
        """Queue a job; one with a past is live at once. Raises ValueError if it could not be computed even alone."""
        for state in self._states.states:
            size, needed = state.pool.size, state.most(job.most, self._longest(job))
            if size is not None and needed > size:
                raise ValueError(
                    f"{job.prompt} prompt tokens and {job.limit} to generate need {needed} {state.unit}, "
                    f"the pool has {size}"
                )
        if job.past is None:
            insort(self.waiting, job, key=_turn)
        else:
            self.live.append(job)

    def _longest(self, job: Job) -> int:
        """The most rows of the job in a step."""
        return min(max(self._chunk, self._beside), job.most)

    @uninterrupted()
    def plan(self) -> dict[Job, int]:
        """The rows of the next step by job; room for them is reserved."""
        self._take_back()
        rows: dict[Job, int] = {}
        before = self.preemptions
        self.live.sort(key=_rank)
        for job in [job for job in self.live if job.decodes and not job.is_full]:
            self._reserve(job, self._decoded(job), rows)
        if len(rows) == len(self.live) and not self.waiting:
            return rows  # as nearly always
        budget = self._beside if rows else self._chunk
        reading = sorted((job for job in self.live if not job.decodes), key=_turn)
        is_open = True
        for job in merge(reading, self.waiting.copy(), key=_turn):
            if not budget:
                break
            if job.is_full:
                continue
            if job.past is None:
                # whoever cannot begin holds up those behind it, so that none is overtaken for ever
                is_open = is_open and self.preemptions == before and self._admit(job)
                if not is_open:
                    continue
            assert job.past is not None
            count = self._states.whole(job.past, min(budget, job.unread))
            if self._reserve(job, count, rows):
                budget -= count
        return rows

    def _decoded(self, job: Job) -> int:
        """The rows of a job that decodes: more than one if tokens behind the last one had to follow it."""
        if job.past is None or job.unread == 1:
            return 1
        return self._states.whole(job.past, min(job.unread, self._chunk))

    def _take_back(self) -> None:
        """After an interruption: rows are computed again whose next token was not chosen."""
        for job in self.live:
            if job.past is not None and not job.unread:
                self._states.rewind(job.past, job.count - 1)
                job.decodes = False

    def _reserve(self, job: Job, count: int, rows: dict[Job, int]) -> bool:
        """Plan rows of a job, if need be by preempting others; False if it is itself preempted."""
        while job.past is not None:
            try:
                self._states.reserve([(job.past, count)])
            except OutOfBlocksError:
                victim = max(self.live, key=_rank)
                rows.pop(victim, None)
                self._preempt(victim)
            else:
                rows[job] = count
                return True
        return False

    def _preempt(self, job: Job) -> None:
        self._leave(job)
        self.preemptions += 1
        job.preemptions += 1
        insort(self.waiting, job, key=_turn)

    def _admit(self, job: Job) -> bool:
        """Begin a job if there is room for it, and no other one is urgent or about to compute a part of it."""
        if len(self.live) >= self._most:
            return False
        reading = [other for other in self.live if not other.decodes]
        if any(other.is_urgent or self._computes(other, job) for other in reading):
            return False
        job.past = self._states.begin(job.tokens)
        if self.live and not self._has_room([*reading, job]):
            self._states.free(job.past)
            job.past = None
            return False
        self.hits += job.past.position
        if job.hits is None:
            job.hits = job.past.position
        self.waiting.remove(job)
        self.live.append(job)
        return True

    def _computes(self, other: Job, job: Job) -> bool:
        """Whether `other` has yet to compute full blocks that `job` begins with too."""
        if other.past is None:
            return False
        equal = map(operator.eq, other.tokens, job.tokens[:-1])
        common = sum(1 for _ in takewhile(bool, equal))
        return common // self._states.block > other.past.position // self._states.block

    def _has_room(self, jobs: Sequence[Job]) -> bool:
        """Whether the unread tokens of jobs fit into the pools, and a block more of the last one."""
        for index, state in enumerate(self._states.states):
            needed = 0
            for job in jobs:
                if job.past is None:
                    continue
                extra = min(state.block, job.most - job.count) if job is jobs[-1] else 0
                count = job.unread + extra
                past = job.past
                fresh = state.needed(past.parts[index], past.position, count, len(past.tokens))
                needed += min(fresh, state.most(job.past.position + count, self._longest(job)))
            if needed > state.pool.free:
                return False
        return True

    @uninterrupted()
    def fork(self, job: Job) -> list[Job]:
        """The forks of a job that has read its prompt, which go on from there."""
        forks, job.forks = job.forks, []
        for other in forks:
            assert job.past is not None
            other.past, other.hits = self._states.fork(job.past), job.hits
            self.live.append(other)
        return forks

    @uninterrupted()
    def remove(self, job: Job) -> None:
        """End a job, wherever it is. One of its forks reads the prompt in its place."""
        if job.past is not None:
            self._leave(job)
        elif job in self.waiting:
            self.waiting.remove(job)
        for other in [*self.live, *self.waiting]:
            if job in other.forks:
                other.forks.remove(job)
        if job.forks:
            first, *rest = job.forks
            job.forks, first.forks = [], rest
            insort(self.waiting, first, key=_turn)

    def _leave(self, job: Job) -> None:
        assert job.past is not None
        if not job.is_kept:
            self._states.free(job.past)
        job.past, job.decodes = None, False
        self.live.remove(job)
