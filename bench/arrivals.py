"""Requests that come and go: what each waits for its first token, and between tokens.

Clients that each ask anew as soon as they have their answer (a closed loop), or requests that arrive at random with a
given rate (an open loop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

PERCENTS = (50, 95, 99)


class Ask(NamedTuple):
    """A request.

    due: seconds after the start; 0 in a closed loop
    """

    prompt: list[int]
    tokens: int
    due: float = 0.0


class Load(NamedTuple):
    """Requests, and how they come: from as many clients as `clients`, or if that is 0 when each is due."""

    name: str
    asks: list[Ask]
    clients: int


@dataclass
class Trace:
    """When a request was made, and when each piece of its text came: seconds. tokens: in all pieces."""

    start: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0


class Waits(NamedTuple):
    """What a load gave.

    rate: tokens a second, of all requests
    first, gap: seconds to the first piece, and between pieces: percentiles 50, 95 and 99, and the longest
    """

    rate: float
    first: list[float]
    gap: list[float]


class Mix(NamedTuple):
    """What requests look like. prompt, tokens: least and most; shared: how many begin with the `system` tokens."""

    prompt: tuple[int, int]
    tokens: tuple[int, int]
    system: int
    shared: float

    def asks(self, rng: np.random.Generator, count: int, text: Sequence[int]) -> list[Ask]:
        """So many requests, whose prompts are pieces of a text."""
        system = self._piece(np.random.default_rng(0), text, self.system)
        found = []
        for i in range(count):
            prompt = self._piece(rng, text, int(rng.integers(*self.prompt, endpoint=True)))
            if (i * self.shared) % 1 + self.shared >= 1:
                prompt = [*system, *prompt[: max(1, self.prompt[1] - self.system)]]
            found.append(Ask(prompt, int(rng.integers(*self.tokens, endpoint=True))))
        return found

    @staticmethod
    def _piece(rng: np.random.Generator, text: Sequence[int], length: int) -> list[int]:
        if len(text) < length:
            raise ValueError(f"the text has {len(text)} tokens, expected at least {length}")
        at = int(rng.integers(len(text) - length + 1))
        return list(text[at : at + length])


def closed(clients: int, count: int, mix: Mix, text: Sequence[int], run: int = 0) -> Load:
    """So many clients, and so many requests in all. Another run has other prompts."""
    name = f"{clients} client{'s' * (clients > 1)}"
    rng = np.random.default_rng([run, clients])
    return Load(name, mix.asks(rng, count, text), clients)


def open_(rate: float, count: int, mix: Mix, text: Sequence[int], run: int = 0) -> Load:
    """Random arrivals, `rate` a second on average. Another run has other prompts."""
    rng = np.random.default_rng([run, int(rate * 1000)])
    due = np.cumsum(rng.exponential(1 / rate, count))
    asks = mix.asks(rng, count, text)
    timed = [ask._replace(due=float(at)) for ask, at in zip(asks, due, strict=True)]
    return Load(f"{rate:g} a second", timed, 0)


def waits(traces: Sequence[Trace]) -> Waits:
    """Sum up. Raises ValueError if a request got no text."""
    if not all(trace.pieces for trace in traces):
        raise ValueError(
            "a request got no text, so that there is nothing to time: take a model that writes some"
        )
    tokens = sum(trace.tokens for trace in traces)
    seconds = max(trace.pieces[-1] for trace in traces) - min(trace.start for trace in traces)
    first = [trace.pieces[0] - trace.start for trace in traces]
    gaps = np.concatenate([np.diff(trace.pieces) for trace in traces])
    return Waits(tokens / seconds, _percentiles(first), _percentiles(gaps))


def _percentiles(seconds: Any) -> list[float]:
    return [*map(float, np.percentile(seconds, PERCENTS)), float(np.max(seconds))]


def measure(
    loads: Sequence[Sequence[Load]], programs: dict[str, Callable[[Load], list[Trace]]]
) -> list[dict[str, Any]]:
    """Each load by each program in turn; of several runs the one with the median rate.

    loads: the runs of each
    Raises ValueError if two programs count other tokens.
    """
    rows = []
    for runs in loads:
        found: dict[str, list[Waits]] = {name: [] for name in programs}
        for load in runs:
            for name, program in programs.items():
                traces = program(load)
                found[name].append(waits(traces))
                counts = [trace.tokens for trace in traces]
                if sorted(counts) != sorted(ask.tokens for ask in load.asks):
                    raise ValueError(
                        f"{name} generated {sum(counts)} tokens, another number than asked"
                    )
        middle = {name: sorted(each)[len(each) // 2] for name, each in found.items()}
        rows.append({"load": runs[0].name, "waits": middle})
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print(
        "| load | program | tok/s | first token, ms: p50, p95, p99, max | between pieces, ms: p50, p95, p99, max |"
    )
    print("|---|---|---|---|---|")
    for row in rows:
        for name, found in row["waits"].items():
            first, gap = (", ".join(f"{1e3 * x:.0f}" for x in each) for each in found[1:])
            print(f"| {row['load']} | {name} | {found.rate:.1f} | {first} | {gap} |")
