"""The thread that owns the engine. Others hand it commands; it hands back what each step gave, at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import numpy as np

from mlx_ferrum.engine import Engine, Event, Request
from mlx_ferrum.engine.choosing import Choice

T = TypeVar("T")
# done in parts, one between two steps; what it returns is the result
Work = Generator[None, None, T]
# log-probability of the token; (id, log-probability) of the likeliest ones
Likely = tuple[float, list[tuple[int, float]]]


class Sink(Protocol):
    """Takes the events of one text.

    top: how many of the likeliest tokens it wants; None: no log-probabilities
    """

    top: int | None

    def feed(self, event: Event, likely: Likely | None) -> None:
        """Take the next event."""


Told = tuple[Sink, Event, Likely | None]


class Loop:
    """Runs an engine in a thread of its own. All methods may be called from any thread."""

    def __init__(
        self,
        make: Callable[[], Engine | None],
        deliver: Callable[[list[Told]], None],
        changed: Callable[[Exception | None], None],
    ) -> None:
        """make: gives the engine, None where there is only other work; may take long, and runs in the thread.

        deliver: called in the thread after each step, with what it gave
        changed: called in the thread with None once the engine is there, and with what ends it
        """
        self._make, self._deliver, self._changed = make, deliver, changed
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._sinks: dict[int, Sink] = {}
        self._ids: dict[Sink, int] = {}
        self._works: deque[tuple[Work[Any], Future[Any]]] = deque()
        self._failure: Exception | None = None
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request, sinks: Sequence[Sink]) -> None:
        """Queue a text for each sink. What the engine refuses comes as an event with the error."""
        self._commands.put(lambda: self._submit(request, sinks))

    def cancel(self, sinks: Sequence[Sink]) -> None:
        """End the texts of sinks before the next step; nothing happens to those that have ended."""
        self._commands.put(lambda: self._cancel(sinks))

    def work(self, work: Work[T]) -> Future[T]:
        """Run other work on the model between steps. It stops where the future is cancelled."""
        future: Future[T] = Future()
        self._commands.put(lambda: self._works.append((work, future)))
        return future

    def close(self) -> None:
        """End all texts and the thread; waits for the step that runs."""
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._engine = self._make()
        except Exception as error:  # noqa: BLE001 - whatever it is, the command reports it
            self._changed(error)
            return
        self._changed(None)
        while self._take():
            self._work()
            if self._is_busy:
                self._step()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        for work, future in self._works:
            work.close()
            future.cancel()
        self._works.clear()
        self._failure = None

    @property
    def _is_busy(self) -> bool:
        return self._engine is not None and self._engine.is_busy and self._failure is None

    @property
    def _present(self) -> Engine:
        assert self._engine is not None, "texts are asked of models that have an engine"
        return self._engine

    def _take(self) -> bool:
        """Run the commands that wait; without anything to do, wait for one. False at the end."""
        is_idle = not self._works and not self._is_busy
        try:
            while True:
                command = self._commands.get(block=is_idle)
                if command is None:
                    return False
                command()
                is_idle = False
        except Empty:
            return True

    def _submit(self, request: Request, sinks: Sequence[Sink]) -> None:
        try:
            if self._failure is not None:
                raise self._failure
            ids = self._present.submit(request, len(sinks))
        except Exception as error:  # noqa: BLE001 - it belongs to this request
            ended = Event(-1, finish_reason="error", error=error)
            self._deliver([(sink, ended, None) for sink in sinks])
            return
        for id, sink in zip(ids, sinks, strict=True):
            self._sinks[id], self._ids[sink] = sink, id

    def _cancel(self, sinks: Sequence[Sink]) -> None:
        for sink in sinks:
            if sink in self._ids:
                self._present.cancel(self._ids[sink])

    def _step(self) -> None:
        try:
            events = self._present.step()
        except Exception as error:  # noqa: BLE001 - it concerns all texts, and is told to each
            self._fail(error)
            return
        told: list[Told] = []
        for event in events:
            sink = self._sinks[event.id]
            if event.finish_reason is not None:
                del self._sinks[event.id], self._ids[sink]
            is_wanted = sink.top is not None and event.choice is not None
            likely = _likely(event, sink.top or 0) if is_wanted else None
            told.append((sink, event, likely))
        if told:
            self._deliver(told)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        ended = Event(-1, finish_reason="error", error=error)
        told: list[Told] = [(sink, ended, None) for sink in self._ids]
        self._sinks.clear()
        self._ids.clear()
        self._present.close()
        self._changed(error)
        self._deliver(told)

    def _work(self) -> None:
        """A part of the work that waits longest."""
        if not self._works:
            return
        work, future = self._works[0]
        try:
            if not future.cancelled():
                next(work)
                self._works.rotate(-1)
                return
            work.close()
        except StopIteration as end:
            if future.set_running_or_notify_cancel():
                future.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - whoever asked for it gets the error
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._works.popleft()


def _likely(event: Event, top: int) -> Likely:
    choice = event.choice
    assert isinstance(choice, Choice)
    assert event.token is not None
    return likely(np.asarray(choice.logprobs()), event.token, top)


def likely(logprobs: np.ndarray, token: int, top: int) -> Likely:
    """logprobs: (vocab,) -> the token's own, and the `top` likeliest, the likeliest first."""
    if not top:
        return float(logprobs[token]), []
    ids = np.argpartition(-logprobs, min(top, len(logprobs)) - 1)[:top].tolist()
    pairs = sorted(((id, float(logprobs[id])) for id in ids), key=lambda pair: (-pair[1], pair[0]))
    return float(logprobs[token]), pairs
