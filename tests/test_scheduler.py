"""The scheduler against its promises, for any order of arrivals, steps and cancellations. No model is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_ferrum.engine.scheduler import PATIENCE, Job, Scheduler
from mlx_ferrum.state.paged import Paged
from mlx_ferrum.state.pool import Pool
from mlx_ferrum.state.states import States

BLOCK = 4
CHUNK, BESIDE = 9, 3


def make_states(sizes: Mapping[int | None, int | None]) -> States:
    """sizes: window -> blocks of its pool."""
    made = [
        Paged(Pool(size), lambda *_: None, window=window, block=BLOCK)
        for window, size in sizes.items()
    ]
    return States(made, BLOCK)


class Computed:
    """Does what a model would. A job's next token is known at once, or `ahead` only after the step after it."""

    def __init__(self, scheduler: Scheduler, states: States, ahead: bool = False) -> None:
        self.scheduler, self.states, self.ahead = scheduler, states, ahead
        self.chosen: list[Job] = []

    def __call__(self, rows: dict[Job, int], token: int = 1) -> set[Job]:
        """Compute rows; returns the jobs that ended."""
        earlier, self.chosen = self.chosen, []
        for job, count in rows.items():
            assert job.past is not None
            start = job.past.position
            assert start + count <= job.count
            self.states.advance(job.past, count, job.tokens[start : start + count])
            if not job.unread:
                for each in [job, *self.scheduler.fork(job)]:
                    each.chosen += 1
                    each.decodes = True
                    self.chosen.append(each)
        if not self.ahead:
            earlier, self.chosen = self.chosen, []
        return {job for job in earlier if self.know(job, token)}

    def know(self, job: Job, token: int) -> bool:
        """The token is known; whether the job ends."""
        job.chosen -= 1
        job.tokens.append(token)
        past = job.past
        if past is not None and len(past.tokens) < min(past.position, len(job.tokens)):
            self.states.note(past, [token])
        if len(job.tokens) == job.prompt + job.limit:
            self.scheduler.remove(job)
            return True
        return False

    def forget(self, job: Job) -> None:
        """A job was cancelled."""
        self.chosen = [each for each in self.chosen if each is not job]


def rank(job: Job) -> tuple[int, int]:
    return -job.priority, job.number


class Promises(RuleBasedStateMachine):
    @initialize(
        size=st.integers(7, 14),
        window=st.sampled_from([None, 3, 6]),
        narrow=st.integers(7, 9),
        ahead=st.booleans(),
        most=st.sampled_from([None, 3]),
    )
    def begin(
        self, size: int, window: int | None, narrow: int, ahead: bool, most: int | None
    ) -> None:
        self.states = make_states({window: narrow, None: size})
        self.scheduler = Scheduler(self.states, chunk=CHUNK, chunk_beside=BESIDE, most=most)
        self.compute = Computed(self.scheduler, self.states, ahead)
        self.jobs: list[Job] = []
        self.count = 0

    @rule(
        length=st.integers(1, 20),
        pattern=st.integers(0, 3),
        limit=st.integers(1, 8),
        priority=st.integers(0, 1),
        n=st.integers(1, 3),
    )
    def submit(self, length: int, pattern: int, limit: int, priority: int, n: int) -> None:
        prompt = [pattern >> i % 2 & 1 for i in range(length)]
        made = [Job(self.count + i, prompt.copy(), limit, priority) for i in range(n)]
        self.count += n
        made[0].forks = made[1:]
        self.scheduler.add(made[0])
        self.jobs += made

    @precondition(lambda self: self.jobs)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        job = self.jobs.pop(pick % len(self.jobs))
        self.scheduler.remove(job)
        self.compute.forget(job)

    @rule(token=st.integers(0, 1), count=st.integers(1, 4))
    def steps(self, token: int, count: int) -> None:
        for _ in range(count):
            self.step(token)

    def step(self, token: int) -> None:
        live, waiting = set(self.scheduler.live), list(self.scheduler.waiting)
        urgent = {job for job in [*live, *waiting] if job.is_urgent}
        decoding = {job for job in live if job.decodes and not job.is_full}
        rows = self.scheduler.plan()
        left = set(self.scheduler.waiting)
        self.check_rows(rows, decoding, left)
        self.check_order(rows, live, waiting, urgent)
        ended = self.compute(rows, token)
        self.jobs = [job for job in self.jobs if job not in ended]

    def check_rows(self, rows: dict[Job, int], decoding: set[Job], left: set[Job]) -> None:
        """Every running job decodes, the chunk keeps its budget, and something is computed."""
        ending = any(job.is_full for job in self.jobs)  # once their last token is known
        assert bool(rows) == bool(self.jobs) or ending
        assert {job for job in decoding if rows.get(job) != 1} <= left
        read = sum(count for job, count in rows.items() if job not in decoding)
        assert read <= (BESIDE if decoding & rows.keys() else CHUNK)
        if unfinished := [job for job in self.scheduler.live if not job.is_full]:
            first = min(unfinished, key=rank)
            assert first in rows or any(job.is_urgent for job in rows)

    def check_order(
        self, rows: dict[Job, int], live: set[Job], waiting: list[Job], urgent: set[Job]
    ) -> None:
        """The preempted are the last in rank, the admitted the first in turn."""
        now = set(self.scheduler.live)
        for job in self.scheduler.waiting:
            if job in live:  # preempted
                assert all(rank(other) < rank(job) for other in now)
        admitted = [job for job in waiting if job in now]
        stayed = [job for job in waiting if job not in now and not job.preemptions]
        places = {job: i for i, job in enumerate(waiting)}
        assert all(places[a] < places[b] for a in admitted for b in stayed)
        if urgent:
            assert set(admitted) <= urgent
        partly = [job for job, count in rows.items() if count < job.unread]
        assert len(partly) <= 1

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "jobs"):
            return
        queued = [*self.scheduler.live, *self.scheduler.waiting]
        known = [*queued, *(fork for job in queued for fork in job.forks)]
        assert sorted(job.number for job in known) == sorted(job.number for job in self.jobs)
        assert all((job.past is not None) == (job in self.scheduler.live) for job in known)
        for index, state in enumerate(self.states.states):
            held: set[int] = set()
            for job in self.scheduler.live:
                assert job.past is not None
                part = job.past.parts[index]
                held.update(part.blocks[part.first :])
            assert held == {b for b, count in enumerate(state.pool.references) if count}

    def teardown(self) -> None:
        """All end: each step computes a row, and no row more often than jobs can be preempted by those before them."""
        if not hasattr(self, "jobs"):
            return
        most = sum(job.most for job in self.jobs) * (1 + len(self.jobs))
        while self.jobs and most >= 0:
            self.step(0)
            most -= 1
        assert not self.jobs
        self.nothing_is_lost()


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def run(scheduler: Scheduler, states: States) -> list[dict[int, int]]:
    """All steps to the end: rows by the numbers of jobs."""
    found, compute = [], Computed(scheduler, states)
    while rows := scheduler.plan():
        found.append({job.number: count for job, count in rows.items()})
        compute(rows)
    return found


def test_a_chunk_is_smaller_beside_jobs_that_decode() -> None:
    states = make_states({None: None})
    scheduler = Scheduler(states, chunk=CHUNK, chunk_beside=BESIDE)
    scheduler.add(Job(0, [0] * 2, 4))
    scheduler.add(Job(1, [5] * 12, 1))
    assert run(scheduler, states) == [{0: 2, 1: 7}, {0: 1, 1: 3}, {0: 1, 1: 2}, {0: 1}]


def test_a_higher_priority_reads_first() -> None:
    states = make_states({None: None})
    scheduler = Scheduler(states, chunk=4, chunk_beside=4)
    for number, priority in enumerate([0, 0, 2]):
        scheduler.add(Job(number, [number] * 4, 1, priority))
    assert run(scheduler, states) == [{2: 4}, {0: 4}, {1: 4}]


def test_what_prompts_share_is_computed_once() -> None:
    states = make_states({None: None})
    scheduler = Scheduler(states)
    for number in range(3):
        scheduler.add(Job(number, [*range(9), number], 1))
    assert run(scheduler, states) == [{0: 10}, {1: 2, 2: 2}]
    assert scheduler.hits == 16


def test_the_newest_of_the_lowest_priority_is_preempted() -> None:
    states = make_states({None: 6})
    scheduler = Scheduler(states)
    jobs = [Job(0, [0] * 4, 9), Job(1, [1] * 4, 9, 1), Job(2, [2] * 4, 9)]
    for job in jobs:
        scheduler.add(job)
    run(scheduler, states)
    assert jobs[1].preemptions == 0 < jobs[2].preemptions
    assert jobs[0].preemptions <= jobs[2].preemptions
    assert [len(job.tokens) for job in jobs] == [13] * 3


def test_after_two_preemptions_nothing_else_is_admitted() -> None:
    states = make_states({None: 8})
    scheduler = Scheduler(states)
    old = Job(0, [0] * 16, 8)
    scheduler.add(old)
    Computed(scheduler, states)(scheduler.plan())
    held_up = Job(1, [1] * 16, 2)
    held_up.preemptions = PATIENCE
    scheduler.add(held_up)
    scheduler.add(Job(2, [2], 1, 9))
    while old in scheduler.live:
        assert [job.number for job in scheduler.plan()] == [0]
        Computed(scheduler, states)(scheduler.plan())
    assert next(iter(scheduler.plan())) is held_up


def test_a_prompt_waits_for_room_for_all_of_it_and_a_block_more() -> None:
    states = make_states({None: 6})
    scheduler = Scheduler(states)
    scheduler.add(Job(0, [0] * 8, 5))
    scheduler.add(Job(1, [1] * 16, 6))
    scheduler.add(Job(2, [2], 1))  # is not admitted before the one in front of it
    found = run(scheduler, states)
    assert found[:5] == [{0: 8}, *[{0: 1}] * 4]
    assert found[5] == {1: 16, 2: 1}
    assert scheduler.preemptions == 0


def test_a_prompt_preempts_a_job_of_lower_priority_that_decodes() -> None:
    states = make_states({None: 7})
    scheduler = Scheduler(states, chunk=4, chunk_beside=4)
    low, high = Job(0, [0] * 4, 13), Job(1, [1] * 20, 1, 1)
    scheduler.add(low)
    Computed(scheduler, states)(scheduler.plan())
    scheduler.add(high)
    run(scheduler, states)
    assert (low.preemptions, high.preemptions) == (1, 0)
    assert len(low.tokens) == 17


def test_nothing_else_is_admitted_while_an_urgent_prompt_is_read() -> None:
    states = make_states({None: None})
    scheduler = Scheduler(states, chunk=4, chunk_beside=4)
    urgent = Job(0, [0] * 6, 1)
    urgent.preemptions = PATIENCE
    scheduler.add(urgent)
    scheduler.add(Job(1, [1], 1, 9))
    assert run(scheduler, states) == [{0: 4}, {0: 2}, {1: 1}]


def test_a_prompt_alone_begins_also_with_blocks_that_it_finds() -> None:
    """What a window holds of a prefix counts toward the most that it needs."""
    states = make_states({6: 3})
    scheduler = Scheduler(states, chunk=4, chunk_beside=4)
    scheduler.add(Job(0, [0] * 9, 1))
    run(scheduler, states)
    scheduler.add(Job(1, [0] * 30, 5))
    assert sum(rows[1] for rows in run(scheduler, states)) == 30 - 8 + 4


@pytest.mark.parametrize("window", [None, 6])
def test_a_job_that_can_never_fit_is_refused(window: int | None) -> None:
    """With a window only what lies before it and the chunk has to fit."""
    scheduler = Scheduler(make_states({window: 5}), chunk=4, chunk_beside=4)
    scheduler.add(Job(0, [0] * 10, 11))
    job = Job(1, [0] * 10, 12)
    if window is not None:
        scheduler.add(job)
        return
    said = "10 prompt tokens and 12 to generate need 6 blocks of 4 positions, the pool has 5"
    with pytest.raises(ValueError, match=said):
        scheduler.add(job)


def test_bad_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="chunks of 0 and 64 tokens"):
        Scheduler(make_states({None: None}), chunk=0)


def test_forks_go_on_from_one_prompt() -> None:
    states = make_states({None: None})
    scheduler = Scheduler(states)
    first: Any = Job(0, [7] * 6, 3)
    first.forks = [Job(1, [7] * 6, 3), Job(2, [7] * 6, 3)]
    scheduler.add(first)
    assert run(scheduler, states) == [{0: 6}, *[{0: 1, 1: 1, 2: 1}] * 2]
