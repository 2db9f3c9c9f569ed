"""Stacks of experts that are read from disk, for a GPU: where the chosen ones lie.

A stack has slots in memory that the GPU reads as they are. Kernels get them as a smaller stack, and numbers of slots in
place of those of experts. That takes the router's choice on the host: the GPU has to finish it first, once a layer. A
layer all of whose experts are in memory does without.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import mlx.core as mx
import numpy as np

from ...kernels.cpu.streams import Stream
from ...options import Norm, Routing
from ...tensor import QTensor
from ..cpu import experts as host

NOWHERE = -1  # the slot of an expert that is not there, for which kernels answer NaN


class Guard:
    """Keeps reads from the slots of a layer while the GPU computes from them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._computed: list[mx.array] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one thread at a time: nothing is being computed at first."""
        with self._lock:
            self.settle()
            yield

    def note(self, y: mx.array) -> None:
        """Begin to compute y, from slots that are held."""
        mx.async_eval(y)  # another thread can wait for it then, but not begin it
        self._computed.append(y)

    def settle(self) -> None:
        """Wait for all that was noted."""
        mx.eval(self._computed)
        self._computed.clear()


def want_experts(gate: QTensor, down: QTensor, ids: mx.array) -> bool:
    """Begin to read what a layer has chosen, (..., n) ids; whether that waited for the GPU."""
    stream, last = _stream(gate), _stream(down)
    if stream is None or last is None or (stream.is_whole and last.is_whole):
        return False
    mx.eval(ids)
    with stream.guard.held():
        host.want_experts(gate, np.asarray(ids))
    return True


def expect_experts(
    x: mx.array,
    norm: Norm,
    router: QTensor,
    gate: QTensor,
    routing: Routing,
    bias: mx.array | None = None,
) -> None:
    """Begin to read what the router of a layer may choose. Arguments: as of the operation for a CPU, which does it."""
    stream = _stream(gate)
    if stream is not None:
        with stream.guard.held():
            host.expect_experts(np.asarray(x), norm, router, gate, routing, bias)


def by_experts(ws: Sequence[QTensor], ids: mx.array, compute: Callable[..., mx.array]) -> mx.array:
    """compute(*stacks, ids) -> (tokens * n, d): a row for each pair, NaN where its expert is not there.

    ids: (tokens, n). Where the chosen experts do not fit at a time, it is asked for all pairs with one portion of the
    experts after another. Raises OSError for experts that cannot be read.
    """
    stream = _stream(ws[0])
    if stream is None or _is_whole(stream, ids):
        return compute(*map(_slots, ws), ids)
    found: mx.array | None = None
    for held in _portions(stream, np.asarray(ids)):
        y = compute(*map(_slots, ws), mx.array(held))
        found = y if found is None else mx.where(mx.array(held.reshape(-1, 1)) < 0, found, y)
        stream.guard.note(found)
    assert found is not None, "there is a portion, if an empty one"
    return found


def by_tokens(w: QTensor, ids: mx.array, compute: Callable[..., mx.array]) -> mx.array:
    """compute(stack, ids, tokens) -> (tokens, d), which needs all experts of a token at a time.

    ids: (tokens, n). Where those of all tokens do not fit, it is asked for slices of the tokens. Raises OSError for
    experts that cannot be read.
    """
    stream = _stream(w)
    if stream is None or _is_whole(stream, ids):
        return compute(_slots(w), ids, slice(None))
    chosen, found = np.asarray(ids), []
    for tokens in _fitting(chosen, stream.slots):
        for held in _portions(stream, chosen[tokens]):
            found.append(compute(_slots(w), mx.array(held), tokens))
            stream.guard.note(found[-1])
    return found[0] if len(found) == 1 else mx.concatenate(found)


def _stream(w: QTensor) -> Stream | None:
    """What reads the experts of a stack for a GPU; None if the stack is mapped."""
    return w.stream[0] if w.stream is not None and w.stream[0].apart else None


def _is_whole(stream: Stream, ids: mx.array) -> bool:
    """Whether all experts are in memory for good; counts the uses of ids then."""
    found = stream.is_whole
    if found:
        stream.note_used(min(ids.size, stream.count))
    return found


def _slots(w: QTensor) -> QTensor:
    """The slots of a stack as a stack of their own; a mapped stack as it is."""
    stream = _stream(w)
    if stream is None:
        return w
    assert w.stream is not None
    found: QTensor | None = w.kept.get("slots")
    if found is None:
        shape = (stream.slots, *w.shape[1:])
        found = QTensor(w.block, shape, stream.stack(w.stream[1]), name=w.name)
        if mx.metal.is_available():  # elsewhere its array is a copy of what the slots hold now
            w.kept["slots"] = found
    return found


def _portions(stream: Stream, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The slots of chosen experts, `NOWHERE` for those that a portion lacks, int32 of the same shape; once at least."""
    is_expert = (chosen >= 0) & (chosen < stream.count)
    numbers = np.unique(chosen[is_expert])
    slot_of = np.full(stream.count + 1, NOWHERE, np.int32)
    places = np.where(is_expert, chosen, stream.count)
    if not len(numbers):
        yield slot_of[places]
        return
    with stream.guard.held(), closing(stream.portions(numbers)) as portions:
        for part, slots in portions:
            slot_of[:] = NOWHERE
            slot_of[numbers[part]] = slots
            yield slot_of[places]
            if part.stop == len(numbers):
                return
            stream.guard.settle()


def _fitting(chosen: np.ndarray, slots: int) -> Iterator[slice]:
    """Slices of the tokens whose experts fit the slots: as many tokens each as do."""
    first, numbers = 0, set[int]()
    for token, ids in enumerate(chosen.tolist()):
        if len(numbers | set(ids)) > slots and token > first:
            yield slice(first, token)
            first, numbers = token, set()
        numbers |= set(ids)
    yield slice(first, len(chosen))
