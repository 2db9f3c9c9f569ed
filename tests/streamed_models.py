"""Models whose experts are read from disk, and reads that go wrong."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import mlx_ferrum
from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.kernels.cpu import native
from mlx_ferrum.nn import Experts

Read = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long, use_errno=True
)
COUNT = 8  # experts of tiny-moe
kept: list[Any] = []  # functions that a reader may still be about to call


def one_each(model: Any) -> int:
    """Bytes of one expert of each layer."""
    experts = [layer.mlp for layer in model.body.layers if isinstance(layer.mlp, Experts)]
    return sum(w.nbytes // mlp.count for mlp in experts for w in (mlp.gate, mlp.up, mlp.down))


def streamed(mapped: Any, each: float, name: str | Path = "tiny-moe") -> Any:
    """The model with room for `each` experts a layer."""
    return mlx_ferrum.load(name, expert_memory=int(each * one_each(mapped)))[0]


def logits(model: Any, ids: np.ndarray, after: int) -> np.ndarray:
    """Of a prompt, and of `after` tokens of it one by one."""
    cache, last = model.make_cache(), len(ids) - after
    found = [np.array(model(mx.array(ids[None, :last]), cache)[0])]
    found += [
        np.array(model(mx.array(ids[None, i : i + 1]), cache)[0]) for i in range(last, len(ids))
    ]
    return np.concatenate(found)


@contextmanager
def reading(function: Callable[[int, int, int, int], int]) -> Iterator[None]:
    """Meanwhile the library reads by a function of descriptor, address, size and offset; it returns -errno or bytes."""

    def read(file: int, to: int, size: int, at: int) -> int:
        found = function(file, to, size, at)
        if found < 0:
            ctypes.set_errno(-found)
            return -1
        return found

    kept.append(Read(read))
    library = native.library()
    library.ferrum_read_by(kept[-1])
    try:
        yield
    finally:
        library.ferrum_read_by(None)


def read_some(file: int, to: int, size: int, at: int) -> int:
    """As pread."""
    return os.preadv(file, [(ctypes.c_char * size).from_address(to)], at)


def texts(model: Any, prompts: list[list[int]], count: int) -> list[list[int | None]]:
    """So many tokens after each prompt, all at the same time."""
    engine, found = Engine(model), dict[int, list[int | None]]()
    for prompt in prompts:
        found[engine.submit(Request(prompt, count))[0]] = []
    while engine.is_busy:
        for event in engine.step():
            found[event.id].append(event.token)
    return list(found.values())


def check_two_threads(model: Any, mapped: Any, ids: np.ndarray, after: int) -> None:
    """Both rows of ids, each in a thread of its own, give the logits of the mapped model."""
    wanted = [logits(mapped, row, after) for row in ids]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda row: logits(model, row, after), ids))
    np.testing.assert_array_equal(found, wanted)
