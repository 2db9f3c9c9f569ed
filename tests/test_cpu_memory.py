"""Memory is handed out again when the last view of an array is gone, and not before, whatever holds the view."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_ferrum.backends.cpu import memory
from mlx_ferrum.backends.cpu.memory import LARGE, empty

SHAPE = (3, LARGE // 2)
SIZE = 2 * 4 * LARGE  # bytes that such an array takes
VIEWS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda x: x,
    "slice": lambda x: x[1:2],
    "scattered": lambda x: x[::2, ::7],
    "flat and turned": lambda x: x.reshape(-1).T,
    "other type": lambda x: x.view(np.float16)[:, 4:],
    "memoryview": lambda x: memoryview(x),
    "array of a memoryview": lambda x: np.asarray(memoryview(x[1:])),
    "frombuffer": lambda x: np.frombuffer(x, np.float32),
    "closure": lambda x: lambda: x,
    "generator": lambda x: (row for row in x),
}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr(memory, "_free", {})


def address(x: np.ndarray) -> int:
    return int(x.ctypes.data)


@pytest.mark.parametrize("shape", [(1,), (2, 3), (LARGE,), (5, LARGE // 3, 2)])
def test_arrays_are_as_asked(shape: tuple[int, ...]) -> None:
    found = empty(*shape)
    assert type(found) is np.ndarray
    assert found.shape == shape and found.dtype == np.float32
    assert found.flags.c_contiguous and found.flags.writeable and found.flags.aligned


@pytest.mark.parametrize("view", VIEWS)
def test_what_a_view_refers_to_is_not_handed_out(view: str) -> None:
    x = empty(*SHAPE)
    where, held = address(x), VIEWS[view](x)
    del x
    assert address(empty(*SHAPE)) != where
    del held
    gc.collect()
    assert where in {address(y) for y in [empty(*SHAPE) for _ in range(2)]}


def test_arrays_in_use_do_not_overlap() -> None:
    """Many of several sizes, some kept and some dropped: each keeps what was written into it."""
    rng = np.random.default_rng(0)
    held: dict[int, np.ndarray] = {}
    for i in range(500):
        x = empty(int(rng.integers(1, 4)), LARGE)
        x[...] = i
        held[i] = x[:, ::2]
        del x
        if len(held) > 10:
            del held[int(rng.choice(list(held)))]
        assert all((y == j).all() for j, y in list(held.items())[-3:])
    assert all((y == j).all() for j, y in held.items())


def test_a_call_does_not_lose_its_argument() -> None:
    """An array that only the caller's stack refers to, as a borrowed reference does."""

    def both(x: np.ndarray) -> tuple[int, int]:
        return address(x), address(empty(*SHAPE))

    first, second = both(empty(*SHAPE))
    assert first != second


def test_what_is_free_is_handed_out_again() -> None:
    where = address(empty(*SHAPE))
    smaller = empty(2, LARGE // 2 + 1)  # of the same power of two
    assert address(smaller) == where
    assert address(empty(*SHAPE)) != where


def test_mlx_does_not_see_what_is_written_later() -> None:
    x = empty(*SHAPE)
    x[...] = 1
    copy = mx.array(x)
    seen = np.asarray(copy)
    del x
    empty(*SHAPE)[...] = 2
    assert (seen == 1).all() and mx.all(copy == 1).item()


def test_memory_returns_from_another_thread() -> None:
    held = [empty(*SHAPE)]
    where = address(held[0])
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert address(empty(*SHAPE)) == where


def test_threads_never_share() -> None:
    """Eight threads take, write, read and pass arrays on."""
    wrong: list[int] = []
    passed: list[np.ndarray] = []

    def work(number: int) -> None:
        for i in range(200):
            x = empty(*SHAPE)
            x[:, ::1024] = number * 1000 + i
            passed.append(x[1:])
            if len(passed) > 8:
                passed.pop(0)
            if not (x[:, ::1024] == number * 1000 + i).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_bounded_amount_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT", 3 * SIZE)
    held = [empty(*SHAPE) for _ in range(10)]
    del held
    assert sum(map(len, memory._free.values())) == 3


def test_a_view_of_an_owner_returns_nothing() -> None:
    x = empty(*SHAPE)
    where, owner = address(x), x.base
    assert owner is not None
    part = owner[:]
    del part, owner
    assert address(empty(*SHAPE)) != where
