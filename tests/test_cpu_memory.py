"""Memory is handed out again when nobody refers to it, and not before."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from mlx_ferrum.backends.cpu_memory import LARGE, empty

SHAPE = (3, LARGE // 2)


def address(x: np.ndarray) -> int:
    return int(x.ctypes.data)


@pytest.mark.parametrize("shape", [(1,), (2, 3), (LARGE,), (5, LARGE // 3, 2)])
def test_arrays_are_as_asked(shape: tuple[int, ...]) -> None:
    found = empty(*shape)
    assert found.shape == shape and found.dtype == np.float32 and found.flags.c_contiguous


def test_what_is_in_use_is_not_handed_out() -> None:
    held: list[Any] = [empty(*SHAPE) for _ in range(5)]
    parts: list[Any] = [held[0][1:2], held[1].reshape(-1).T, memoryview(held[2])]
    for i, x in enumerate(held):
        x[...] = i
    del held[:3]
    others = [empty(*SHAPE) for _ in range(5)]
    for x in others:
        x[...] = -1
    assert [np.asarray(x).ravel()[0] for x in (*parts, *held)] == [0, 1, 2, 3, 4]


def test_what_is_free_is_handed_out_again() -> None:
    first = empty(*SHAPE)
    where = address(first)
    del first
    smaller = empty(2, LARGE // 2 + 1)  # of the same power of two
    assert address(smaller) == where
    assert address(empty(*SHAPE)) != where


def test_threads_do_not_share() -> None:
    mine = empty(*SHAPE)
    where = address(mine)
    del mine
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(address(empty(*SHAPE))))
    thread.start()
    thread.join()
    assert found != [where]
