"""Slots of recurrent states: what a pass reads is always the state at its position, whatever happened before."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlx_ferrum.state.paged import Paged
from mlx_ferrum.state.pool import OutOfBlocksError, Pool
from mlx_ferrum.state.sequence import Sequence
from mlx_ferrum.state.slotted import SNAPSHOTS, Slotted
from mlx_ferrum.state.states import States

BLOCK = 4


class Texts:
    """Sequences over slots whose contents are the texts that they stand for."""

    def __init__(self, size: int | None = None, keep: int = 0) -> None:
        self.slotted = Slotted(Pool(size, keep=keep), BLOCK)
        self.states = States([Paged(Pool(), lambda *_: None, block=BLOCK), self.slotted], BLOCK)
        self.contents: dict[int, tuple[int, ...]] = {}
        self.whole: dict[int, list[int]] = {}  # texts with ids that are not known yet, by identity

    def begin(self, text: list[int]) -> Sequence:
        sequence = self.states.begin(text)
        self.whole[id(sequence)] = text[: sequence.position]
        return sequence

    def write(self, sequence: Sequence, new: list[int], *, known: bool = True) -> None:
        """One pass. Without room for it nothing changes."""
        self.states.reserve([(sequence, len(new))])
        part = sequence.parts[1]
        text = self.text(sequence)
        if sequence.position:
            assert self.contents[part.source] == tuple(text)
        else:
            assert part.source == -1
        assert part.target not in {slot for _, slot in part.held}
        self.contents[part.target] = (*text, *new)
        self.whole[id(sequence)] = [*text, *new]
        self.states.advance(sequence, len(new), new if known else ())

    def text(self, sequence: Sequence) -> list[int]:
        return self.whole[id(sequence)][: sequence.position]

    def rewind(self, sequence: Sequence, position: int) -> int:
        reached = self.states.rewind(sequence, position)
        self.whole[id(sequence)] = self.whole[id(sequence)][:reached]
        if reached:
            assert self.contents[sequence.parts[1].source] == tuple(self.text(sequence))
        return reached

    def fork(self, sequence: Sequence) -> Sequence:
        other = self.states.fork(sequence)
        self.whole[id(other)] = list(self.whole[id(sequence)])
        return other


def test_a_pass_can_be_repeated() -> None:
    texts = Texts()
    sequence = texts.begin([])
    texts.write(sequence, [1, 2, 3])
    texts.states.reserve([(sequence, 2)])
    (_, part) = sequence.parts
    before = part.source, part.target
    texts.states.reserve([(sequence, 2)])  # as after an interruption
    assert (part.source, part.target) == before


def test_one_step_back_costs_nothing() -> None:
    """A text that stops while the step after it is computed; ids are known a step late."""
    texts = Texts()
    sequence = texts.begin([])
    texts.write(sequence, [1, 2, 3])
    for token in range(4, 9):
        texts.write(sequence, [token], known=False)
        texts.states.note(sequence, [token][: sequence.position - len(sequence.tokens) - 1])
        assert texts.rewind(sequence, sequence.position - 1) == sequence.position
        texts.write(sequence, [token])


def test_a_sequence_alone_needs_two_slots() -> None:
    texts = Texts()
    sequence = texts.begin([])
    for token in range(3 * BLOCK - 1):
        texts.write(sequence, [token])
    assert texts.slotted.pool.capacity == 2


def test_ids_that_nobody_gives_hold_few_slots() -> None:
    texts = Texts()
    sequence = texts.begin([])
    for token in range(20):
        texts.write(sequence, [token], known=False)
    assert texts.slotted.pool.capacity == 4


def test_a_fork_shares_its_state() -> None:
    texts = Texts()
    one = texts.begin([])
    texts.write(one, [1, 2, 3])
    two = texts.fork(one)
    assert one.parts[1].source == two.parts[1].source
    assert texts.slotted.pool.capacity == 1
    texts.write(two, [4])
    texts.write(one, [5])
    assert texts.contents[one.parts[1].source] == (1, 2, 3, 5)
    assert texts.contents[two.parts[1].source] == (1, 2, 3, 4)


def test_going_back_lands_on_the_turn_before() -> None:
    texts = Texts(keep=8)
    sequence = texts.begin([])
    texts.write(sequence, [1, 2, 3, 4, 5])  # a prompt, and three tokens of a reply
    for token in (6, 7, 8):
        texts.write(sequence, [token])
    texts.write(sequence, [9])
    texts.write(sequence, [10, 11])  # the next turn
    for token in (12, 13):
        texts.write(sequence, [token])
    assert texts.rewind(sequence, 10) == 9
    texts.write(sequence, [20, 21, 22])
    assert texts.rewind(sequence, 7) == 5


def test_a_new_sequence_starts_at_the_last_snapshot() -> None:
    texts = Texts(keep=8)
    text = list(range(11))
    first = texts.begin(text)
    assert texts.states.whole(first, 11) == 8
    texts.write(first, text[:8])
    assert texts.states.whole(first, 3) == 3
    texts.write(first, text[8:])
    assert texts.begin([*text, 11, 12]).position == 8
    texts.states.free(first)
    assert texts.begin(text[:9]).position == 8
    assert texts.begin(text[:8]).position == 0  # the state at 4 was never there


def test_older_snapshots_lie_further_apart() -> None:
    texts = Texts(keep=64)
    sequence = texts.begin([])
    for start in range(0, 400, BLOCK):
        texts.write(sequence, list(range(start, start + BLOCK)))
    positions = [each.position for each in sequence.parts[1].snapshots]
    assert len(positions) == SNAPSHOTS
    gaps = np.diff([0, *positions])
    assert gaps[-1] == BLOCK
    assert gaps[0] >= 4 * BLOCK
    behind = [400 - position for position in positions]
    assert max(behind[i] / max(behind[i + 1], BLOCK) for i in range(len(behind) - 1)) <= 3


def test_generated_tokens_keep_one_snapshot() -> None:
    texts = Texts(keep=64)
    sequence = texts.begin([])
    texts.write(sequence, [1, 2, 3, 4, 5, 6])
    for token in range(50):
        texts.write(sequence, [token])
    assert [each.position for each in sequence.parts[1].snapshots] == [6, 56]
    assert sum(texts.slotted.pool.references) == 2


def test_private_snapshots_end_with_their_sequence() -> None:
    texts = Texts(keep=64)
    sequence = texts.begin([])
    texts.write(sequence, [1, 2, 3])
    texts.write(sequence, [4, 5, 6])
    texts.states.free(sequence)
    assert repr(texts.slotted.pool) == "Pool(0 blocks held, 0 cached)"


def test_rows_are_reserved_before_they_are_computed() -> None:
    texts = Texts()
    sequence = texts.begin([])
    texts.states.reserve([(sequence, 1)])
    texts.states.advance(sequence, 1, [1])
    with pytest.raises(ValueError, match="expected reserved rows"):
        texts.slotted.advance(sequence.parts[1], 1, 1)
    with pytest.raises(ValueError, match="there is no snapshot"):
        texts.slotted.rewind(sequence.parts[1], [], 7)
    with pytest.raises(ValueError, match="expected a position with a snapshot"):
        texts.slotted.begin([b"unknown"], BLOCK)


class SlotsMachine(RuleBasedStateMachine):
    """Texts that share starts, in a pool with or without a size."""

    @initialize(size=st.sampled_from([None, 4, 6]), keep=st.integers(0, 9))
    def start(self, size: int | None, keep: int) -> None:
        self.texts = Texts(size, keep if size is None else 0)
        self.live: list[Sequence] = []
        self.late: dict[int, list[int]] = {}

    @rule(length=st.integers(0, 14), kind=st.integers(0, 2))
    def begin(self, length: int, kind: int) -> None:
        if len(self.live) < 3:
            sequence = self.texts.begin([(kind * i) % 3 for i in range(length)])
            if sequence.position:
                source = sequence.parts[1].source
                assert self.texts.contents[source] == tuple(sequence.tokens)
            self.live.append(sequence)

    @rule(data=st.data(), count=st.integers(1, 6), kind=st.integers(0, 2), late=st.booleans())
    def write(self, data: st.DataObject, count: int, kind: int, late: bool) -> None:
        if not self.live:
            return
        sequence = data.draw(st.sampled_from(self.live))
        start = sequence.position
        new = [(kind * i) % 3 for i in range(start, start + count)]
        waiting = self.late.get(id(sequence), [])
        if waiting:
            self.texts.states.note(sequence, waiting)
            self.late.pop(id(sequence))
        late = late and count == 1
        with contextlib.suppress(OutOfBlocksError):
            self.texts.write(sequence, new, known=not late)
            if late:
                self.late[id(sequence)] = new

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        if 0 < len(self.live) < 3:
            sequence = data.draw(st.sampled_from(self.live))
            if id(sequence) not in self.late:
                self.live.append(self.texts.fork(sequence))

    @rule(data=st.data(), share=st.floats(0, 1))
    def rewind(self, data: st.DataObject, share: float) -> None:
        if self.live:
            sequence = data.draw(st.sampled_from(self.live))
            self.late.pop(id(sequence), None)
            known = len(sequence.tokens)
            wanted = int(share * known)
            reached = self.texts.rewind(sequence, wanted)
            assert reached <= wanted
            if wanted == known and self.texts.slotted.pool.size is None:
                assert reached == known, "a row whose token nobody saw is taken back"

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.live:
            sequence = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
            self.late.pop(id(sequence), None)
            self.texts.states.free(sequence)

    @invariant()
    def slots_are_counted(self) -> None:
        if not hasattr(self, "live"):
            return
        held = [s for each in self.live for _, s in each.parts[1].held]
        held += [each.parts[1].target for each in self.live if each.parts[1].target >= 0]
        references = self.texts.slotted.pool.references
        assert references == [held.count(slot) for slot in range(len(references))]


SlotsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSlots = SlotsMachine.TestCase
