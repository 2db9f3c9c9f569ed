"""Keeps memory resident while models generate, where the backend's GPU would otherwise let the system page it out."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import mlx.core as mx

from mlx_ferrum import notice, ops
from mlx_ferrum.models.base import LanguageModel

T = TypeVar("T")
MOST = 0.9  # of the limit that weights may take before caches and activations no longer fit beside them


class _Users:
    """Counts generations: MLX has one limit, which the first of them sets and the last one restores."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a forgotten generator may be closed amid any call
        self._count = 0
        self._before: int | None = None

    def enter(self, limit: int) -> None:
        with self._lock:
            if self._before is None:
                self._before = mx.set_wired_limit(limit)
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._before is not None:
                before, self._before = self._before, None
                mx.set_wired_limit(before)


_users = _Users()


def wired(model: LanguageModel, steps: Generator[T, None, None]) -> Generator[T, None, None]:
    """`steps`, with memory wired from the first step until they end or are closed.

    Warns if the model's weights leave too little of the limit.
    """
    with resident(model):
        yield from steps


@contextmanager
def resident(model: LanguageModel) -> Iterator[None]:
    """While entered, memory is wired. Warns if the model's weights leave too little of the limit."""
    limit = ops.wired_limit()
    if limit is None:
        yield
        return
    if model.nbytes > MOST * limit:
        notice.warn(
            f"the model's weights take {model.nbytes / 1e9:.1f} GB, more than {MOST:.0%} of the "
            f"{limit / 1e9:.1f} GB that the GPU keeps resident: generation can be slow"
        )
    _users.enter(limit)
    try:
        yield
    finally:
        try:
            mx.synchronize()  # a step may be in flight
        finally:
            _users.leave()
