"""Decoding without Python between the kernels.

For a batch in which each sequence has one row, a model makes the same calls every time. What differs (tokens,
positions, lengths, block tables) is memory that the calls read. So the calls for one batch are recorded. For the next
batches of the same shape their arrays are copied to where those of the first one lay, and the library makes the same
calls again.

This is verified: a second batch is recorded too, in an arena that gives its results the same addresses. Unless both
recordings are the same to the last byte, every batch goes through the model. An operation may only read results of
other operations, the batch and the model's constants, and the model may only return such results: what Python computes
itself would not be computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from ...batch import Batch
from ...kernels.cpu import native
from .memory import Arena, trace, within

T = TypeVar("T")
MOST = 8  # shapes of batches whose steps are kept
NAMES = ("tokens", "positions", "starts", "lengths")  # of a batch's arrays


class Repeated(Generic[T]):
    """See `ops.repeated`."""

    def __init__(self, run: Callable[[Batch], T]) -> None:
        self._run = run
        self._steps: dict[Any, _Step[T]] = {}
        self._repeats = True  # until it is seen that the calls differ

    def __call__(self, batch: Batch) -> T:
        if not batch.decodes or not self._repeats:
            return self._run(batch)
        shape = (len(batch.lengths), *(x.shape for state in batch.states for x in state.arrays))
        step = self._steps.pop(shape, None)
        if step is None or not step.fits(batch):
            step = _Step(batch)
        self._steps[shape] = step  # the last one used comes last
        if len(self._steps) > MOST:
            del self._steps[next(iter(self._steps))]
        out = step(self._run, batch)
        self._repeats = step.repeats
        return out


class _Step(Generic[T]):
    """The step for batches of one shape, over keys and values that lie where they lie."""

    def __init__(self, batch: Batch) -> None:
        self._batch = _copy(batch)  # whose arrays the recorded calls read
        self._arena = Arena(*_arrays(self._batch))
        self._recording: native.Recording | None = None
        self._out: T | None = None
        self._is_trusted = False
        self.repeats = True

    def fits(self, batch: Batch) -> bool:
        """Whether the keys and values of the batch lie where they did."""
        return batch.layers is self._batch.layers and batch.grown == self._batch.grown

    def __call__(self, run: Callable[[Batch], T], batch: Batch) -> T:
        _fill(self._batch, batch)
        if not self._is_trusted or self._recording is None:
            self._out = self._record(run)
        else:
            self._recording.replay()
        assert self._out is not None
        return self._out

    def _record(self, run: Callable[[Batch], T]) -> T:
        made, before = native.Recording(), self._recording
        self._batch.shared.clear()
        with within(self._arena), native.recorded(made):
            out = run(self._batch)
            _trace_all(out)
        self._recording = made
        if before is not None:
            self._is_trusted = self.repeats = made.repeats(before) and self._arena.is_closed
        return out


def _copy(batch: Batch) -> Batch:
    states = [type(state)(*(x.copy() for x in state.arrays)) for state in batch.states]
    arrays: dict[str, Any] = {name: np.array(getattr(batch, name)) for name in NAMES}
    return replace(batch, rows=[], states=states, shared={}, **arrays)


def _arrays(batch: Batch) -> list[np.ndarray]:
    """All arrays of a batch."""
    return [*(getattr(batch, name) for name in NAMES), *_places(batch)]


def _places(batch: Batch) -> list[np.ndarray]:
    """The arrays that say where the sequences lie in the states."""
    return [x for state in batch.states for x in state.arrays]


def _trace_all(out: Any) -> None:
    """Trace what a run returns: an array, or a tuple of such."""
    if isinstance(out, tuple):
        for each in out:
            _trace_all(each)
    else:
        trace(out)


def _fill(target: Batch, source: Batch) -> None:
    """Copy the arrays of a batch of the same shape."""
    target.tokens[:] = source.tokens
    target.positions[:] = source.positions
    target.lengths[:] = source.lengths
    for to, by in zip(_places(target), _places(source), strict=True):
        to[:] = by
