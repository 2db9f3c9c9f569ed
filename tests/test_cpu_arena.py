"""Memory of a recorded step: equal addresses for equal requests, and never the same memory for two living arrays."""

from __future__ import annotations

import gc
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mlx_ferrum.backends.cpu import memory
from mlx_ferrum.backends.cpu.memory import ALIGNMENT, CHUNK, Arena, empty, trace, within


def address(x: np.ndarray) -> int:
    return int(x.ctypes.data)


def lives(seed: int, steps: int = 400) -> list[int]:
    """Addresses of arrays of random sizes, of which random ones live on; each keeps what was written into it."""
    rng, made = np.random.default_rng(seed), list[int]()
    held: dict[int, tuple[np.ndarray, int]] = {}
    for i in range(steps):
        count = int(rng.choice([0, 1, 15, 16, 17, 1000, 70_000, CHUNK // 4 + 5]))
        x = empty(count, dtype=(np.float32, np.int32)[i % 2])
        made.append(address(x))
        x[...] = i
        # any view keeps the memory
        held[i] = (x[::2], i) if rng.random() < 0.5 else (x.reshape(-1, 1).T, i)
        del x
        while len(held) > rng.integers(1, 12):
            del held[int(rng.choice(list(held)))]
        assert all((y == n).all() for y, n in held.values())
    spans = sorted((address(y), y.nbytes) for y, _ in held.values())
    assert all(a + n <= b for (a, n), (b, _) in pairwise(spans) if n)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_the_same_requests_get_the_same_addresses(seed: int) -> None:
    arena, made = Arena(), []
    for _ in range(3):
        with within(arena):
            made.append(lives(seed))
    assert made[0] == made[1] == made[2]
    assert all(where % ALIGNMENT == 0 for where in made[0])


def test_other_requests_in_between_change_nothing() -> None:
    arena, made = Arena(), []
    for seed in (1, 2, 1, 3, 1):
        with within(arena):
            made.append(lives(seed, 100))
    assert made[0] == made[2] == made[4]


def test_arrays_from_before_do_not_disturb() -> None:
    """What lives on from an earlier start, and is dropped amid a later one, is not handed out twice."""
    arena = Arena()
    with within(arena):
        old = [empty(100) for _ in range(8)]
        wanted = [address(x) for x in old]
    with within(arena):
        new = []
        for i, where in enumerate(wanted):
            x = empty(100)
            assert address(x) == where
            x[...] = i
            new.append(x)
            old.pop()
            gc.collect()
    assert [x[0] for x in new] == list(range(8))


def test_two_arenas_and_the_heap_do_not_overlap() -> None:
    one, other = Arena(), Arena()
    with within(one):
        first = empty(1000)
    with within(other):
        second = empty(1000)
    outside = empty(1000)
    for i, x in enumerate((first, second, outside)):
        x[...] = i
    assert [float(x.min()) for x in (first, second, outside)] == [0, 1, 2]
    assert one.owns(first) and not one.owns(second) and not one.owns(outside)


def test_other_threads_have_no_arena() -> None:
    arena, found = Arena(), list[Any]()
    with within(arena):
        thread = threading.Thread(target=lambda: found.append(empty(10)))
        thread.start()
        thread.join()
        mine = empty(10)
    assert arena.owns(mine) and not arena.owns(found[0])
    assert memory._thread.arena is None


def test_an_exception_ends_the_arena() -> None:
    arena = Arena()
    with pytest.raises(KeyError), within(arena):
        raise KeyError
    assert not arena.owns(empty(10))


@pytest.mark.parametrize(
    ("read", "closed"),
    [
        (lambda x, known: x, True),
        (lambda x, known: x[3:, ::2], True),
        (lambda x, known: x.reshape(-1)[5:].view(np.int32), True),
        (lambda x, known: known, True),
        (lambda x, known: x + 1, False),
        (lambda x, known: x.copy(), False),
        (lambda x, known: known.copy(), False),
        (lambda x, known: np.ascontiguousarray(x.T), False),
        (lambda x, known: [1.0, 2.0], False),
    ],
)
def test_an_arena_notes_what_is_not_its_own(read: Any, closed: bool) -> None:
    known = np.arange(9.0)
    arena = Arena(known)
    for _ in range(2):
        with within(arena):
            trace(empty(4, 6))
            assert arena.is_closed
            trace(read(empty(4, 6), known))
            assert arena.is_closed == closed


def test_memory_is_bounded() -> None:
    """Arrays that are dropped make room for the next ones of their size."""
    arena = Arena()
    for _ in range(3):
        with within(arena):
            for _ in range(200):
                empty(CHUNK // 8)
    assert sum(map(len, arena._chunks)) <= 2 * CHUNK
