"""States against a model: any order of operations, and a dictionary that says what every block holds.

The content of a row is the text up to it, as a real row depends on all tokens before it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_ferrum.state.paged import Paged, Part
from mlx_ferrum.state.pool import OutOfBlocksError, Pool
from mlx_ferrum.state.sequence import Sequence
from mlx_ferrum.state.states import States

MOST = 6  # live sequences
ROWS = st.builds(  # few texts, so that many have the same prefix
    lambda count, pattern: [pattern >> i % 2 & 1 for i in range(count)],
    st.integers(1, 20),
    st.integers(0, 3),
)
PICK = st.integers(0, MOST - 1)


def chain(text: Iterable[int], block: int) -> list[bytes]:
    """Keys of the full blocks of a text, written independently."""
    text, keys, parent = list(text), [], b""
    for end in range(block, len(text) + 1, block):
        data = b"".join(token.to_bytes(8, "little") for token in text[end - block : end])
        parent = hashlib.blake2b(parent + data, digest_size=16).digest()
        keys.append(parent)
    return keys


class Group:
    """One window group, its storage, and blocks that somebody else holds."""

    def __init__(self, window: int | None, slack: int, pool: Pool, block: int) -> None:
        self.window, self.slack, self.pool, self.block = window, slack, pool, block
        self.paged = Paged(pool, self.copy, window=window, slack=slack, block=block)
        self.storage: dict[tuple[int, int], tuple[int, ...]] = {}
        self.extra: list[int] = []
        self.peak = 0  # the most blocks that were needed at once

    def copy(self, source: int, target: int) -> None:
        assert self.pool.references[source] > 0
        assert self.pool.is_mine(target)
        for offset in range(self.block):
            self.storage.pop((target, offset), None)
            if (source, offset) in self.storage:
                self.storage[target, offset] = self.storage[source, offset]

    def seen(self, position: int) -> range:
        """Positions before `position` that a row there sees."""
        return range(0 if self.window is None else max(0, position - self.window + 1), position)

    def seen_blocks(self, position: int) -> set[int]:
        """Indices of the blocks that a sequence must have to go on at `position`."""
        begun = {position // self.block} if position % self.block else set()
        return {p // self.block for p in self.seen(position)} | begun

    def behind(self, part: Part, position: int) -> list[int]:
        """Indices of held blocks that lie behind window and slack at `position`."""
        if self.window is None:
            return []
        last = position - (self.window - 1) - self.slack
        held = range(part.first, len(part.blocks))
        return [i for i in held if all(i * self.block + o < last for o in range(self.block))]


@dataclass(eq=False)
class Live:
    sequence: Sequence
    text: list[int]
    prompt: list[int]
    floor: int = 0  # lowest position that it can surely go back to
    tables: list[tuple[list[int], int]] = field(default_factory=list)


class StatesModel(RuleBasedStateMachine):
    @initialize(
        block=st.integers(2, 4),
        groups=st.lists(
            st.tuples(
                st.sampled_from([None, 1, 3, 5, 10]),
                st.sampled_from([0, 0, 1, 2, 5]),
                st.one_of(st.integers(3, 30), st.none()),
                st.integers(0, 6),
            ),
            min_size=1,
            max_size=3,
        ),
    )
    def start(self, block, groups):
        self.block = block
        self.groups = [
            Group(window, slack, Pool(size) if size else Pool(keep=keep), block)
            for window, slack, size, keep in groups
        ]
        self.keeps = [keep for _, _, _, keep in groups]
        self.states = States([group.paged for group in self.groups], block)
        self.live: list[Live] = []
        self.texts: list[tuple[int, ...]] = [()]  # of all sequences, also of those that have ended
        self.prefixes: dict[bytes, tuple[int, ...]] = {}  # key -> the text that it stands for

    # what the truth says

    def remember(self, text: list[int]) -> None:
        self.texts.append(tuple(text))
        for i, key in enumerate(chain(text, self.block), 1):
            self.prefixes[key] = tuple(text[: i * self.block])

    def hashed(self, group: Group) -> set[int]:
        return {b for key in self.prefixes if (b := group.pool.find(key)) is not None}

    def held(self, group: Group, index: int) -> Counter[int]:
        parts = [live.sequence.parts[index] for live in self.live]
        return Counter(b for part in parts for b in part.blocks if b >= 0) + Counter(group.extra)

    def needed(self, live: Live, index: int, count: int) -> int:
        group, part = self.groups[index], live.sequence.parts[index]
        references, position = self.held(group, index), len(live.text)
        indices = {p // self.block for p in range(position, position + count)}
        hashed = self.hashed(group)
        mine = [i for i in indices if i < len(part.blocks)]
        mine = [i for i in mine if references[b := part.blocks[i]] == 1 and b not in hashed]
        freed = [i for i in group.behind(part, position) if references[part.blocks[i]] == 1]
        return max(0, len(indices) - len(mine) - len(freed) * bool(indices))

    def photograph(self) -> object:
        """All that a refused reserve must leave alone."""
        return (
            [
                (x.sequence.position, x.sequence.tokens.copy(), x.sequence.reserved)
                for x in self.live
            ],
            [(p.blocks.copy(), p.first, p.version) for x in self.live for p in x.sequence.parts],
            [(g.pool.references.copy(), g.pool.free, g.storage.copy()) for g in self.groups],
            [[g.pool.find(key) for key in self.prefixes] for g in self.groups],
        )

    # what can happen

    @precondition(lambda self: len(self.live) < MOST)
    @rule(back=st.integers(1, 8), cut=st.integers(0, 12), more=ROWS, prefill=st.booleans())
    def begin(self, back, cut, more, prefill):
        """A text that starts as an earlier one, computed at once or bit by bit."""
        earlier = self.texts[-back:][0]
        prompt = [*earlier[: max(0, len(earlier) - cut)], *more]
        keys, best = chain(prompt, self.block), 0
        for n in range(0, len(prompt), self.block):
            if all(g.pool.find(keys[i]) is not None for g in self.groups for i in g.seen_blocks(n)):
                best = n
        sequence = self.states.begin(prompt)
        assert sequence.position == best
        windows = any(g.window is not None for g in self.groups)
        self.live.append(Live(sequence, prompt[:best], prompt[best:], best if windows else 0))
        self.remember(prompt[:best])
        if prefill:
            self.step([self.live[-1]], [prompt[best:]], len(prompt))

    @precondition(lambda self: self.live)
    @rule(picks=st.sets(PICK, min_size=1, max_size=3), rows=ROWS, known=st.integers(0, 25))
    def append(self, picks, rows, known):
        some = [self.live[i] for i in sorted({pick % len(self.live) for pick in picks})]
        self.step(some, [live.prompt[: len(rows)] or rows for live in some], known)

    def step(self, some: list[Live], chunks: list[list[int]], known: int) -> None:
        """A pass over some sequences; of each chunk, `known` ids are known at once."""
        wanted = [(live.sequence, len(chunk)) for live, chunk in zip(some, chunks, strict=True)]
        fits = True
        for index, group in enumerate(self.groups):
            pairs = zip(some, chunks, strict=True)
            needed = sum(self.needed(live, index, len(chunk)) for live, chunk in pairs)
            fits &= group.pool.size is None or needed <= group.pool.free
            group.peak = max(group.peak, len(self.held(group, index)) + needed)
        before = self.photograph()
        try:
            self.states.reserve(wanted)
        except OutOfBlocksError:
            assert not fits
            assert self.photograph() == before
            return
        assert fits
        for live, chunk in zip(some, chunks, strict=True):
            self.compute(live, chunk, known)

    def raise_floor(self, live: Live) -> None:
        """After a reserve: blocks behind window and slack are gone."""
        slacks = [group.slack for group in self.groups if group.window is not None]
        if slacks:
            live.floor = max(live.floor, len(live.text) - min(slacks))

    def compute(self, live: Live, chunk: list[int], known: int) -> None:
        sequence = live.sequence
        position = len(live.text)
        self.raise_floor(live)
        live.text += chunk
        del live.prompt[: len(chunk)]
        for group, part in zip(self.groups, sequence.parts, strict=True):
            assert not group.behind(part, position)
            for p in range(position, len(live.text)):
                block = part.blocks[p // self.block]
                assert group.pool.is_mine(block)
                group.storage[block, p % self.block] = tuple(live.text[: p + 1])
                self.check_contents(group, part, live.text, group.seen(p + 1))
        late = len(sequence.tokens) < position
        self.states.advance(sequence, len(chunk), () if late else chunk[:known])
        self.remember(live.text)

    @precondition(lambda self: self.live)
    @rule(pick=PICK, count=st.integers(0, 20))
    def note(self, pick, count):
        live = self.live[pick % len(self.live)]
        known = len(live.sequence.tokens)
        self.states.note(live.sequence, live.text[known : known + count])

    @precondition(lambda self: self.live)
    @rule(pick=PICK, count=st.integers(1, 20))
    def reserve_only(self, pick, count):
        """A pass that is given up after its blocks were reserved."""
        live = self.live[pick % len(self.live)]
        for index, group in enumerate(self.groups):
            needed = self.needed(live, index, count)
            group.peak = max(group.peak, len(self.held(group, index)) + needed)
        try:
            self.states.reserve([(live.sequence, count)])
        except OutOfBlocksError:
            return
        self.raise_floor(live)

    @precondition(lambda self: 0 < len(self.live) < MOST)
    @rule(pick=PICK)
    def fork(self, pick):
        live = self.live[pick % len(self.live)]
        fork = self.states.fork(live.sequence)
        self.live.append(Live(fork, live.text.copy(), live.prompt.copy(), live.floor))

    @precondition(lambda self: self.live)
    @rule(pick=PICK, back=st.one_of(st.integers(0, 6), st.integers(0, 60)))
    def rewind(self, pick, back):
        live = self.live[pick % len(self.live)]
        position = max(0, len(live.text) - back)
        keys = chain(live.sequence.tokens, self.block)
        parts = list(zip(self.groups, live.sequence.parts, strict=True))

        def is_there(group: Group, part: Part, i: int) -> bool:
            return i >= part.first or (i < len(keys) and group.pool.find(keys[i]) is not None)

        def reaches(q: int) -> bool:
            return all(
                is_there(group, part, i) for group, part in parts for i in group.seen_blocks(q)
            )

        expected = max(q for q in range(position + 1) if reaches(q))
        if position >= live.floor:
            assert expected == position
        assert self.states.rewind(live.sequence, position) == expected
        del live.text[expected:]
        live.prompt.clear()
        live.floor = min(live.floor, expected)

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def free(self, pick):
        live = self.live.pop(pick % len(self.live))
        self.states.free(live.sequence)

    @rule(which=st.integers(0, 2), count=st.integers(1, 8))
    def others_take(self, which, count):
        index = which % len(self.groups)
        group = self.groups[index]
        for _ in range(min(count, group.pool.free)):
            before = self.held(group, index)
            block = group.pool.take()
            assert not before[block]
            assert block not in self.hashed(group)
            group.extra.append(block)
            group.peak = max(group.peak, len(before) + 1)

    @rule(which=st.integers(0, 2))
    def others_release(self, which):
        group = self.groups[which % len(self.groups)]
        while group.extra:
            group.pool.release(group.extra.pop())

    # what must hold after every step

    def check_contents(self, group: Group, part: Part, text: list[int], seen: range) -> None:
        for p in seen:
            block = part.blocks[p // self.block]
            assert block >= 0, f"position {p} was freed"
            assert group.storage[block, p % self.block] == tuple(text[: p + 1])

    @invariant()
    def sequences_are_as_written(self):
        for live in self.live:
            sequence = live.sequence
            assert sequence.position == len(live.text)
            assert sequence.tokens == live.text[: len(sequence.tokens)]
            assert sequence.keys == chain(sequence.tokens, self.block)
            for group, part in zip(self.groups, sequence.parts, strict=True):
                self.check_contents(group, part, live.text, group.seen(len(live.text)))
                held = range(min(part.first * self.block, len(live.text)), len(live.text))
                self.check_contents(group, part, live.text, held)
                assert [b >= 0 for b in part.blocks] == [
                    i >= part.first for i in range(len(part.blocks))
                ]

    @invariant()
    def changed_tables_have_new_versions(self):
        for live in self.live:
            for (blocks, version), part in zip(live.tables, live.sequence.parts, strict=False):
                assert part.version >= version
                assert part.version > version or part.blocks == blocks
            live.tables = [(part.blocks.copy(), part.version) for part in live.sequence.parts]

    @invariant()
    def counts_are_exact(self):
        for index, (group, keep) in enumerate(zip(self.groups, self.keeps, strict=True)):
            pool, held = group.pool, self.held(group, index)
            assert pool.references == [held[block] for block in range(pool.capacity)]
            if pool.size is None:
                assert pool.capacity <= max(keep, group.peak)
            else:
                assert pool.free == pool.size - len(held)

    @invariant()
    def found_blocks_are_final(self):
        for group in self.groups:
            found = {key: b for key in self.prefixes if (b := group.pool.find(key)) is not None}
            assert len(set(found.values())) == len(found)
            for key, block in found.items():
                text = self.prefixes[key]
                start = len(text) - self.block
                rows = [group.storage[block, offset] for offset in range(self.block)]
                assert rows == [text[: start + offset + 1] for offset in range(self.block)]
                if group.window is None and start:
                    assert chain(text[:start], self.block)[-1] in found, (
                        "a parent was evicted first"
                    )

    def teardown(self):
        if not hasattr(self, "live"):
            return
        for live in self.live:
            self.states.free(live.sequence)
        for group, keep in zip(self.groups, self.keeps, strict=True):
            while group.extra:
                group.pool.release(group.extra.pop())
            assert not any(group.pool.references)
            size = group.pool.size or max(group.pool.capacity, keep)
            blocks = [group.pool.take() for _ in range(size)]
            assert sorted(blocks) == list(range(size))
            assert not self.hashed(group)
            for block in blocks:
                group.pool.release(block)
            assert group.pool.size in (None, group.pool.free)


TestStates = StatesModel.TestCase
TestStates.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, database=None, derandomize=True
)
