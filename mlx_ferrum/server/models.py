"""Which models are loaded, and who uses them. All of it happens in asyncio's thread.

A request uses a model from its choice until its answer has ended. If the model is loaded, the request goes on at once,
unless the first of those that wait needs the model's memory. Else it waits in a queue: the first one in it decides
which models are closed, and all that wait for the same model go on together once it is loaded. So nobody is overtaken
for ever.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_ferrum import amounts, cli
from mlx_ferrum.traffic import traffic

from .about import About, of_model
from .entries import Entries, Entry
from .errors import RequestError
from .metrics import Metrics
from .reply import Answer
from .service import Limits, Service

log = logging.getLogger("mlx_ferrum.server.models")


class State(Enum):
    """What happens to a model that is, or was, in memory."""

    LOADING = "loading"
    READY = "ready"
    CLOSING = "closing"


@dataclass(eq=False)
class Live:
    """A model in memory. users: requests that have chosen it and have no answer yet"""

    entry: Entry
    service: Service
    state: State = State.LOADING
    users: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether requests can use it."""
        return self.state is State.READY and self.service.failure is None

    @property
    def is_loading(self) -> bool:
        """Whether it is not there yet."""
        return self.state is State.LOADING

    @property
    def is_idle(self) -> bool:
        """Whether it can be closed."""
        return self.state is State.READY and not self.users and not self.service.answers


@dataclass(eq=False)
class Waiter:
    """A request that waits for a model."""

    entry: Entry
    live: asyncio.Future[Live]


class Models:
    """The models of a server.

    entries: all that there are
    memory: bytes for all that is loaded at a time; None: no limit
    failed: called with what ends the loading of a model, or its engine, and whether it was ever loaded
    Raises RequestError for a model that is loaded at the start and is not there, or too large.
    """

    def __init__(
        self,
        entries: Entries,
        *,
        limits: Limits | None = None,
        memory: int | None = None,
        failed: Callable[[Entry, Exception, bool], None] = lambda *_: None,
    ) -> None:
        self.limits, self.metrics = limits or Limits(), Metrics()
        self._entries, self._memory, self._failed = entries, memory, failed
        self._live: OrderedDict[str, Live] = OrderedDict()  # the one used longest ago first
        self._waiting: deque[Waiter] = deque()
        self._failing: set[str] = set()  # names of what could not be loaded, or has failed
        self._served: set[str] = set()  # names of what was ever loaded
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        for entry in entries.first:
            self._check_size(entry)

    def start(self) -> None:
        """Begin to load what requests use that name no model; in a running asyncio loop."""
        self._asyncio = asyncio.get_running_loop()
        for entry in self._entries.first:
            self._queue(entry).live.add_done_callback(self._begun)

    def _begun(self, live: asyncio.Future[Live]) -> None:
        if live.exception() is None:
            self._leave(live.result())

    async def close(self) -> None:
        """End all that runs and waits."""
        self._is_closed = True
        for waiter in self._waiting:
            if not waiter.live.done():
                waiter.live.set_exception(_ending())
                waiter.live.exception()  # of those that nobody awaits
        self._waiting.clear()
        for live in list(self._live.values()):
            if live.state is not State.CLOSING:
                self._close(live)
        while self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def state(self) -> str:
        """One of "loading", "ready" and "failing": of the only model, where there are no others to ask for."""
        default = self._entries.default
        if not self._entries.is_fixed or default is None:
            return "ready"
        if default in self._failing:
            return "failing"
        return "ready" if self.service(default) is not None else "loading"

    @property
    def waiting(self) -> int:
        """How many requests wait for a model."""
        return len(self._waiting)

    @property
    def answers(self) -> set[Answer]:
        """All that run or wait for their turn."""
        return {answer for live in self._live.values() for answer in live.service.answers}

    def service(self, name: str) -> Service | None:
        """What serves a model, if it is loaded. Only to look at: it may be closed at any time."""
        live = self._live.get(name)
        return live.service if live is not None and live.is_ready else None

    def about(self, entry: Entry) -> About | None:
        """What a model is, as far as that is known."""
        service = self.service(entry.name)
        if entry.about is not None or service is None:
            return entry.about
        return of_model(service.model)

    async def entries(self) -> Sequence[Entry]:
        """All models, as they are now or were some seconds ago."""
        if await self._entries.update():
            self._advance()
        return self._entries.all

    async def find(self, name: str) -> Entry:
        """See `Entries.find`."""
        await self.entries()
        return self._entries.find(name)

    async def find_encoder(self, name: str) -> Entry:
        """See `Entries.find_encoder`."""
        await self.entries()
        return self._entries.find_encoder(name)

    @asynccontextmanager
    async def use(
        self, entry: Entry, left: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[Service]:
        """Wait until a model is loaded, and keep it so.

        left: waits for the client to leave
        Raises RequestError if it cannot be loaded, if that takes too long, and if too many wait already.
        """
        live = self._at_once(entry) or await self._wait(entry, left)
        try:
            yield live.service
        finally:
            self._leave(live)

    def _at_once(self, entry: Entry) -> Live | None:
        """The model, if the request need not wait for it."""
        live = self._live.get(entry.name)
        if live is None or not live.is_ready or live.entry != entry:
            return None
        if self._waiting and live in self._victims(self._waiting[0].entry):
            return None
        return self._taken(live)

    def _taken(self, live: Live) -> Live:
        live.users += 1
        self._live.move_to_end(live.entry.name)
        return live

    def _leave(self, live: Live) -> None:
        live.users -= 1
        self._advance()

    async def _wait(self, entry: Entry, left: Callable[[], Awaitable[None]]) -> Live:
        limits = self.limits
        self._check_size(entry)
        if self._is_closed:
            raise _ending()
        if self.waiting >= limits.running + limits.queue:
            text = f"{self.waiting} requests wait for a model already"
            raise RequestError(text, status=429, code="rate_limit_exceeded", retry_after=1)
        waiter = self._queue(entry)
        gone = asyncio.ensure_future(left())
        try:
            first = asyncio.FIRST_COMPLETED
            either: list[asyncio.Future[Any]] = [waiter.live, gone]
            await asyncio.wait(either, timeout=limits.seconds, return_when=first)
            if waiter.live.done() and not gone.done():
                return waiter.live.result()
            if gone.done():
                raise RequestError("the client left while its model was loaded", status=499)
            text = f"the model was not there after {limits.seconds:g} seconds"
            raise RequestError(text, status=504, code="timeout")
        except BaseException:
            self._give_up(waiter)
            raise
        finally:
            gone.cancel()

    def _check_size(self, entry: Entry) -> None:
        """Raises RequestError for a model that is too large even alone."""
        if self._memory is not None and entry.nbytes > self._memory:
            needed, most = amounts.size(entry.nbytes), amounts.size(self._memory)
            text = (
                f"{entry.name}: needs {needed} with its pool of keys and values (--pool), "
                f"expected at most {most} (--model-memory)"
            )
            raise RequestError(text, status=503, code="model_too_large")

    def _queue(self, entry: Entry) -> Waiter:
        waiter = Waiter(entry, self._asyncio.create_future())
        self._waiting.append(waiter)
        self._advance()
        return waiter

    def _give_up(self, waiter: Waiter) -> None:
        """A request ends while it waits, or just when it need not any more."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            self._advance()
        elif waiter.live.exception() is None:
            self._leave(waiter.live.result())

    def _advance(self) -> None:
        """Something has changed: let those go on that can, close what has to go, load what is wanted next."""
        for old in list(self._live.values()):
            if old.is_idle and not self._is_current(old):
                self._close(old)
        while self._waiting and not self._is_closed:
            entry = self._waiting[0].entry
            live = self._live.get(entry.name)
            if live is not None and live.is_ready and live.entry == entry:
                self._admit(live)
            elif not self._make_room(entry):
                return
            elif live is None:
                self._load(entry)
            else:  # it is being loaded
                return

    def _is_current(self, live: Live) -> bool:
        """Whether it is what requests would get now."""
        return live.service.failure is None and live.entry in self._entries.all

    def _admit(self, live: Live) -> None:
        """Let all go on that wait for a model."""
        ready = [waiter for waiter in self._waiting if waiter.entry == live.entry]
        self._waiting = deque(waiter for waiter in self._waiting if waiter.entry != live.entry)
        for waiter in ready:
            waiter.live.set_result(self._taken(live))

    def _victims(self, entry: Entry) -> list[Live]:
        """What has to go before a model can be loaded: first what goes already or is idle, then what is used."""
        mine = self._live.get(entry.name)
        if mine is not None and mine.entry == entry and (mine.is_ready or mine.is_loading):
            return []
        found = [mine] if mine is not None else []
        others = [live for live in self._live.values() if live is not mine]
        others.sort(key=lambda live: (live.state is not State.CLOSING, not live.is_idle))
        excess = entry.nbytes + sum(live.entry.nbytes for live in others) - (self._memory or 0)
        for live in others:
            if self._memory is None or excess <= 0:
                break
            found.append(live)
            excess -= live.entry.nbytes
        return found

    def _make_room(self, entry: Entry) -> bool:
        """Whether a model can be loaded now; else models are closed, or used until they can be."""
        victims = self._victims(entry)
        if all(live.is_idle for live in victims):
            for live in victims:
                self._close(live)
        return not victims

    def _load(self, entry: Entry) -> None:
        service = Service(
            entry.load, entry.name, self.limits, self.metrics.of(entry.name), self._advance
        )
        live = self._live[entry.name] = Live(entry, service)
        service.start(partial(self._changed, live))

    def _changed(self, live: Live, error: Exception | None) -> None:
        """A model is there, or could not be loaded; or its engine has failed."""
        entry = live.entry
        if error is None:
            self._failing.discard(entry.name)
            self._served.add(entry.name)
            live.service.metrics.loaded()
            log.info("%s is loaded", entry.name)
            if live.is_loading:
                live.state = State.READY
        else:
            self._failing.add(entry.name)
            self._failed(entry, error, entry.name in self._served)
            if live.is_loading:
                self._refuse(entry, error)
                self._close(live)
        self._advance()

    def _refuse(self, entry: Entry, error: Exception) -> None:
        """Tell those that wait for a model that it cannot be loaded."""
        text = f"{entry.name} cannot be loaded: {cli.describe(error)}"
        for waiter in [waiter for waiter in self._waiting if waiter.entry == entry]:
            self._waiting.remove(waiter)
            waiter.live.set_exception(RequestError(text, status=503, code="failing"))
            waiter.live.exception()  # of those that nobody awaits

    def _close(self, live: Live) -> None:
        live.state = State.CLOSING
        task = self._asyncio.create_task(self._closed(live))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _closed(self, live: Live) -> None:
        await live.service.close()
        await asyncio.to_thread(_collect)
        live.service.metrics.closed()
        del self._live[live.entry.name]
        log.info("%s is closed", live.entry.name)
        self._advance()

    async def report(self) -> bytes:
        """The text that Prometheus reads."""
        for live in list(self._live.values()):
            if not live.is_ready:
                continue
            live.users += 1  # so that it is not closed before it answers
            try:
                live.service.metrics.take(await live.service.stats())
                live.service.metrics.take_traffic(traffic(live.service.model.streams))
            finally:
                self._leave(live)
        return self.metrics.report()


class _Cycle:
    """Garbage that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


def _collect() -> None:
    """Free what only cycles hold: the mapped weights, the pool, the process of the template."""
    while True:
        garbage = weakref.ref(_Cycle())
        gc.collect()
        if garbage() is None:
            break
        time.sleep(0.001)  # another thread was collecting, which makes `collect` return at once
    mx.clear_cache()


def _ending() -> RequestError:
    return RequestError("the server is shutting down", status=503)
