"""Each promise and each error of block tables, and of the sequences that have them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mlx_ferrum.state.paged import Paged
from mlx_ferrum.state.pool import OutOfBlocksError, Pool
from mlx_ferrum.state.sequence import Sequence, extend_keys
from mlx_ferrum.state.states import States

BLOCK = 4


def no_copy(source: int, target: int) -> None:
    raise AssertionError(f"block {source} was copied to {target}")


def make(size: int | None = None, copy=no_copy, **options) -> tuple[States, Paged]:
    paged = Paged(Pool(size), copy, block=BLOCK, **options)
    return States([paged], BLOCK), paged


def write(states: States, sequence: Sequence, tokens: list[int], known: bool = True) -> None:
    states.reserve([(sequence, len(tokens))])
    states.advance(sequence, len(tokens), tokens if known else ())


# Tables


def test_a_window_holds_what_its_rows_see_and_the_slack() -> None:
    states, paged = make(8, window=6, slack=3)  # at position p it holds p - 8 and later
    sequence = states.begin()
    (part,) = sequence.parts
    firsts = []
    for position in range(20):
        write(states, sequence, [position])
        firsts.append(part.first)
    assert firsts == [max(0, position - 8) // BLOCK for position in range(20)]
    assert part.blocks[:2] == [-1, -1]
    assert sum(paged.pool.references) == 3


def test_long_chunks_free_what_lies_behind_them_first() -> None:
    states, paged = make(4, window=4)
    sequence = states.begin()
    for start in range(0, 40, 8):
        write(states, sequence, list(range(start, start + 8)))
    assert sum(paged.pool.references) == 3  # the first row of the last chunk sees 3 more
    assert states.room() == 1


def test_a_window_needs_only_what_its_first_row_sees_to_start() -> None:
    states, _ = make(window=5)
    text = list(range(17))
    sequence = states.begin()
    for token in text:
        write(states, sequence, [token])
    assert sequence.parts[0].first == 3  # so blocks 0 to 2 are cached, or were taken again
    assert states.begin(text).position == 16
    assert states.begin(text[:10]).position == 0


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(("lost", "start"), [(0, 8), (1, 8), (2, 0)])
def test_a_start_is_one_that_all_states_have(lost: int, start: int, turn: int) -> None:
    """With a window, 12 positions may be held where 8 are not."""
    full, window = (Paged(Pool(4), no_copy, window=w, block=BLOCK) for w in (None, 4))
    states = States([full, window][::turn], BLOCK)
    text = list(range(13))
    sequence = states.begin(text)
    for token in text:
        write(states, sequence, [token])
    states.free(sequence)
    for pool, count in ((full.pool, 1), (window.pool, lost)):
        for _ in range(count + 1):  # one more, as the last block was not full
            pool.take()
    assert full.longest(sequence.keys, 12) == 8
    assert window.longest(sequence.keys, 12) == 12
    assert states.begin(text).position == start


def test_whoever_writes_into_a_shared_block_copies_it_and_the_last_one_does_not() -> None:
    copies: list[tuple[int, int]] = []
    states, paged = make(4, lambda *pair: copies.append(pair))
    one = states.begin()
    write(states, one, [1, 2, 3, 4, 5, 6])
    two = states.fork(one)
    write(states, two, [7])
    assert copies == [(1, 2)]
    write(states, one, [8])
    assert copies == [(1, 2)]
    assert (one.parts[0].blocks, two.parts[0].blocks) == ([0, 1], [0, 2])
    assert paged.pool.references == [2, 1, 1]


def test_a_full_block_shared_by_a_fork_is_not_copied() -> None:
    states, _ = make()
    one = states.begin()
    write(states, one, [1, 2, 3, 4])
    write(states, states.fork(one), [5])


def test_a_published_block_is_copied_before_it_is_written_again() -> None:
    copies: list[tuple[int, int]] = []
    states, paged = make(4, lambda *pair: copies.append(pair))
    sequence = states.begin()
    write(states, sequence, [1, 2, 3, 4, 5])
    assert states.rewind(sequence, 2) == 2
    write(states, sequence, [6])
    assert copies == [(0, 1)]
    assert paged.pool.find(states.begin([1, 2, 3, 4, 0]).keys[0]) == 0


def test_only_the_block_with_contents_is_copied_of_those_reserved_ahead() -> None:
    copies: list[tuple[int, int]] = []
    states, _ = make(copy=lambda *pair: copies.append(pair))
    one = states.begin()
    states.reserve([(one, 12)])
    states.advance(one, 2)
    two = states.fork(one)
    states.reserve([(one, 10), (two, 10)])
    assert copies == [(0, one.parts[0].blocks[0])]
    assert not set(one.parts[0].blocks) & set(two.parts[0].blocks)


def test_going_back_takes_up_blocks_that_are_still_cached() -> None:
    states, _ = make(16, window=3)
    sequence = states.begin()
    for token in range(16):
        write(states, sequence, [token])
    assert sequence.parts[0].first == 3
    assert states.rewind(sequence, 7) == 7
    assert sequence.parts[0].blocks == [-1, 1]
    assert sequence.tokens == list(range(7))
    assert len(sequence.keys) == 1


def test_going_back_stops_where_blocks_are_gone() -> None:
    states, paged = make(16, window=3)
    sequence = states.begin()
    for token in range(16):
        write(states, sequence, [token], known=False)
    assert sequence.parts[0].first == 3
    with pytest.raises(ValueError, match="cannot go back to position 11: block 2 is gone"):
        paged.rewind(sequence.parts[0], sequence.keys, 11)
    assert states.rewind(sequence, 14) == 14
    assert states.rewind(sequence, 11) == 0


@pytest.mark.parametrize("turn", [1, -1])
def test_going_back_ends_where_all_states_can_go_on(turn: int) -> None:
    """One has lost the block that it needs at 4, the other those that it needs at 7 and at 3."""
    three, one = (Paged(Pool(5), no_copy, window=w, block=BLOCK) for w in (3, 1))
    states = States([three, one][::turn], BLOCK)
    sequence = states.begin()
    for token in range(17):
        write(states, sequence, [token])
    three.pool.take()
    one.pool.take()
    one.pool.take()
    parts = dict(zip(states.states, sequence.parts, strict=True))
    reached = [state.reach(parts[state], sequence.keys, 7) for state in (three, one)]
    assert reached == [7, 4]
    assert states.rewind(sequence, 7) == 0


def test_versions_grow_with_each_change_of_the_table_only() -> None:
    states, _ = make(window=4)
    sequence = states.begin()
    (part,) = sequence.parts
    versions = []
    for _ in range(9):
        write(states, sequence, [0])
        versions.append(part.version)
    grown = [i for i in range(1, 9) if versions[i] > versions[i - 1]]
    assert grown == [4, 7, 8]  # a second block; the first one falls behind; a third one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0, expected at least 1"),
        ({"slack": -1}, "slack -1 and block 32, expected at least 0 and 1"),
        ({"block": 0}, "slack 0 and block 0"),
    ],
)
def test_options_of_tables_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Paged(Pool(), no_copy, **options)


def test_a_start_that_is_not_held_is_refused() -> None:
    _, paged = make()
    with pytest.raises(ValueError, match="start at 3, expected a multiple of 4"):
        paged.begin([b"k"], 3)
    with pytest.raises(ValueError, match="block 0 of the sequence is not in the pool"):
        paged.begin([b"k"], 4)


# States


def test_one_row_is_left_to_compute() -> None:
    states, _ = make()
    text = list(range(8))
    sequence = states.begin(text)
    assert sequence.position == 0
    write(states, sequence, text)
    assert [states.begin(text[:n]).position for n in (0, 4, 5, 8)] == [0, 0, 4, 4]
    assert states.begin([*text, 9]).position == 8
    assert states.begin([9, *text[1:], 9]).position == 0


def test_blocks_are_found_once_their_ids_are_known() -> None:
    states, _ = make()
    sequence = states.begin()
    write(states, sequence, [1, 2, 3, 4, 5], known=False)
    states.note(sequence, [1, 2, 3])
    assert states.begin([1, 2, 3, 4, 5]).position == 0
    states.note(sequence, [4])
    assert states.begin([1, 2, 3, 4, 5]).position == 4


def test_a_batch_that_does_not_fit_changes_nothing() -> None:
    states, paged = make(3)
    one, two = states.begin(), states.begin()
    with pytest.raises(OutOfBlocksError, match="out of blocks: 4 wanted, 3 of 3 free") as caught:
        states.reserve([(one, 5), (two, 5)])
    assert (caught.value.wanted, caught.value.free, caught.value.size) == (4, 3, 3)
    assert (one.parts[0].blocks, two.parts[0].blocks, paged.pool.free) == ([], [], 3)
    with pytest.raises(ValueError, match="advance by 1 rows, expected at most the 0 reserved"):
        states.advance(one, 1)


def test_blocks_that_one_sequence_frees_do_not_count_for_another() -> None:
    states, paged = make(6, window=4)
    one, two, three = states.begin(), states.begin(), states.begin()
    write(states, one, list(range(20)))  # the next row frees four of its five blocks
    with pytest.raises(OutOfBlocksError, match="3 wanted, 1 of 6 free"):
        states.reserve([(three, 1), (two, 5), (one, 1)])
    assert (two.parts[0].blocks, three.parts[0].blocks, paged.pool.free) == ([], [], 1)
    states.reserve([(one, 1)])
    states.reserve([(three, 1), (two, 5)])


def test_what_was_reserved_is_void_after_fork_and_rewind() -> None:
    states, _ = make()
    sequence = states.begin()
    states.reserve([(sequence, 9)])
    states.advance(sequence, 4)
    fork = states.fork(sequence)
    for either in (sequence, fork):
        with pytest.raises(ValueError, match="advance by 1 rows, expected at most the 0 reserved"):
            states.advance(either, 1)
    states.reserve([(fork, 3)])
    assert states.rewind(fork, 4) == 4
    with pytest.raises(ValueError, match="advance by 1 rows, expected at most the 0 reserved"):
        states.advance(fork, 1)


def test_sequences_that_ended_make_room() -> None:
    states, _ = make(2)
    for start in range(0, 40, 8):
        sequence = states.begin(list(range(start, start + 8)))
        write(states, sequence, list(range(start, start + 8)))
        assert states.room() == 0
        states.free(sequence)
        assert states.room() == 2


def test_states_of_no_layers_hold_nothing() -> None:
    states = States([])
    sequence = states.begin([1] * 100)
    assert (sequence.position, states.room()) == (0, sys.maxsize)
    write(states, sequence, [1] * 100)
    assert states.rewind(sequence, 7) == 7


def test_states_have_pools_of_their_own_and_one_block_size() -> None:
    _, paged = make()
    with pytest.raises(ValueError, match=r"states with blocks of \[4\] positions, expected 32"):
        States([paged])
    with pytest.raises(ValueError, match="two states have the same pool"):
        States([paged, Paged(paged.pool, no_copy, window=3, block=BLOCK)], BLOCK)


def test_misuse_of_sequences_is_named() -> None:
    states, _ = make()
    sequence = states.begin()
    write(states, sequence, [1, 2], known=False)
    assert repr(sequence) == "Sequence(2 positions, 0 tokens known)"
    with pytest.raises(ValueError, match="count is -1, expected at least 0"):
        states.reserve([(sequence, -1)])
    with pytest.raises(ValueError, match="a sequence is named twice"):
        states.reserve([(sequence, 1), (sequence, 1)])
    with pytest.raises(ValueError, match="3 token ids, expected at most 2"):
        states.note(sequence, [1, 2, 3])
    states.reserve([(sequence, 1)])
    with pytest.raises(ValueError, match="rows from 2 on, expected those from 0 on first"):
        states.advance(sequence, 1, [3])
    states.note(sequence, [1, 2])
    with pytest.raises(ValueError, match="2 token ids, expected at most 1"):
        states.advance(sequence, 1, [3, 4])
    with pytest.raises(ValueError, match="rewind to 3, expected 0 to 2"):
        states.rewind(sequence, 3)
    assert (sequence.position, sequence.tokens) == (2, [1, 2])


@pytest.mark.parametrize("name", ["fork", "free", "rewind", "note", "advance", "reserve"])
def test_a_freed_sequence_and_one_of_another_model_are_refused(name: str) -> None:
    states, paged = make()
    freed, other = states.begin(), make()[0].begin()
    write(states, freed, [1, 2])
    states.free(freed)
    assert not any(paged.pool.references)
    extra: dict[str, list[Any]] = {"rewind": [0], "note": [[]], "advance": [0]}
    for sequence in (freed, other):
        with pytest.raises(ValueError, match="is freed or another model's, expected a live one"):
            if name == "reserve":
                states.reserve([(sequence, 1)])
            else:
                getattr(states, name)(sequence, *extra.get(name, []))


def test_keys_cover_all_tokens_before_them() -> None:
    def keys(tokens: list[int]) -> list[bytes]:
        made: list[bytes] = []
        extend_keys(made, tokens, BLOCK)
        return made

    long = keys([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert (len(long), {len(key) for key in long}) == (2, {16})
    assert keys([1, 2, 3, 4]) == long[:1]
    assert keys([0, 2, 3, 4, 5, 6, 7, 8])[1] != long[1]
    assert keys([1 + (1 << 8), 2, 3, 4]) != long[:1]
    extend_keys(long, list(range(1, 13)), BLOCK)
    assert long == keys(list(range(1, 13)))
