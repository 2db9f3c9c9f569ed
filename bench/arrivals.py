"""Requests that come and go: what each waits for its first token, and between tokens.

Clients that each ask anew as soon as they have their answer (a closed loop), or requests that arrive at random with a
given rate (an open loop). Prompts are random tokens of random lengths; every answer has the same number of tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.models.base import LanguageModel

PERCENTS = (50, 95, 99)


class Ask(NamedTuple):
    """A request.

    due: seconds after the start; 0 in a closed loop
    """

    prompt: list[int]
    tokens: int
    due: float


class Load(NamedTuple):
    """Requests, and how they come: as many clients as `clients`, or if that is 0 when each is due."""

    name: str
    asks: list[Ask]
    clients: int

    @property
    def most(self) -> int:
        """Requests that can be under way at the same time."""
        return self.clients or len(self.asks)


@dataclass
class Trace:
    """When a request was made, and when each of its tokens came: seconds."""

    start: float
    tokens: list[float] = field(default_factory=list)


class Waits(NamedTuple):
    """What a load gave.

    rate: tokens a second, of all requests
    first, gap: seconds to the first token, and between tokens: percentiles 50, 95 and 99, and the longest
    """

    rate: float
    first: list[float]
    gap: list[float]


def closed(clients: int, *, count: int, prompt: int, tokens: int, vocab_size: int) -> Load:
    """So many clients."""
    rng = np.random.default_rng(clients)
    asks = [Ask(_prompt(rng, prompt, vocab_size), tokens, 0.0) for _ in range(count)]
    return Load(f"{clients} client{'s' * (clients > 1)}", asks, clients)


def open_(rate: float, *, count: int, prompt: int, tokens: int, vocab_size: int) -> Load:
    """Random arrivals, `rate` a second on average."""
    rng = np.random.default_rng(int(rate * 1000))
    due = np.cumsum(rng.exponential(1 / rate, count)) - 1e-9
    asks = [Ask(_prompt(rng, prompt, vocab_size), tokens, float(at)) for at in due]
    return Load(f"{rate:g} a second", asks, 0)


def _prompt(rng: np.random.Generator, most: int, vocab_size: int) -> list[int]:
    ids: list[int] = rng.integers(0, vocab_size, int(rng.integers(most // 4, most + 1))).tolist()
    return ids


def ours(model: LanguageModel, load: Load, **options: Any) -> list[Trace]:
    """Our engine, in this thread; options: of `Engine`."""
    engine = Engine(model, **options)
    engine.prepare(min(load.most, 16))
    queue, under_way = deque(load.asks), dict[int, Trace]()
    traces = []
    start = time.perf_counter()
    while queue or engine.is_busy:
        now = time.perf_counter() - start
        while queue and (len(under_way) < load.clients if load.clients else queue[0].due <= now):
            ask = queue.popleft()
            request = Request(ask.prompt, ask.tokens)
            [id] = engine.submit(request)
            under_way[id] = Trace(now if load.clients else ask.due)
            traces.append(under_way[id])
        if not engine.is_busy:
            time.sleep(max(0.0, queue[0].due - now))
            continue
        for event in engine.step():
            under_way[event.id].tokens.append(time.perf_counter() - start)
            if event.finish_reason is not None:
                del under_way[event.id]
    engine.close()
    return traces


def waits(traces: Sequence[Trace]) -> Waits:
    """Sum up."""
    tokens = sum(len(trace.tokens) for trace in traces)
    seconds = max(trace.tokens[-1] for trace in traces) - min(trace.start for trace in traces)
    first = [trace.tokens[0] - trace.start for trace in traces]
    gaps = np.concatenate([np.diff(trace.tokens) for trace in traces])
    return Waits(tokens / seconds, _percentiles(first), _percentiles(gaps))


def _percentiles(seconds: Any) -> list[float]:
    return [*map(float, np.percentile(seconds, PERCENTS)), float(np.max(seconds))]


def measure(
    loads: Sequence[Load], programs: dict[str, Callable[[Load], list[Trace]]], runs: int
) -> list[dict[str, Any]]:
    """Each load by each program in turn; of several runs the one with the median rate."""
    rows = []
    for load in loads:
        found: dict[str, list[Waits]] = {name: [] for name in programs}
        for _ in range(runs):
            for name, program in programs.items():
                found[name].append(waits(program(load)))
        middle = {name: sorted(each)[len(each) // 2] for name, each in found.items()}
        rows.append({"load": load.name, "waits": middle})
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print(
        "| load | program | tok/s | first token, ms: p50, p95, p99, max | between tokens, ms: p50, p95, p99, max |"
    )
    print("|---|---|---|---|---|")
    for row in rows:
        for name, found in row["waits"].items():
            first, gap = (", ".join(f"{1e3 * x:.0f}" for x in each) for each in found[1:])
            print(f"| {row['load']} | {name} | {found.rate:.1f} | {first} | {gap} |")
