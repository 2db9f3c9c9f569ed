"""Texts of an engine, and those of each request alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import random_models

from mlx_ferrum.engine import Engine, Event, Request
from mlx_ferrum.generate import generate_step

CLOSE = 1e-3  # of the two likeliest log-probabilities: either may be chosen
SIZES = random_models.Sizes(layers=2, context=256)
SAMPLED = {"temp": 1.0, "top_p": 0.95}


class Allowed:
    """A constraint by functions of the tokens so far, and after as many tokens as `most` the end.

    allow: gives bool (vocab,), or None for all
    force: what has to follow
    """

    def __init__(self, allow: Any = None, force: Any = None, most: int = 1 << 30) -> None:
        self.allow, self.force, self.most = allow, force, most
        self.texts: list[list[int]] = []
        self.asked: list[list[int]] = []  # before which tokens it was asked

    def begin(self) -> _Follower:
        self.texts.append([])
        return _Follower(self, self.texts[-1])


class _Follower:
    def __init__(self, of: Allowed, seen: list[int]) -> None:
        self.of, self.seen = of, seen

    @property
    def must_end(self) -> bool:
        return len(self.seen) >= self.of.most

    def fill(self, bits: np.ndarray) -> None:
        self.of.asked.append(self.seen.copy())
        allowed = None if self.of.allow is None else self.of.allow(self.seen)
        bits[:] = -1 if allowed is None else packed(np.asarray(allowed))

    def accept(self, token: int) -> None:
        self.seen.append(token)

    def forced(self) -> list[int]:
        return [] if self.of.force is None else self.of.force(self.seen)


def packed(allowed: np.ndarray) -> np.ndarray:
    """bool (…, vocab) -> int32 (…, ceil(vocab / 32)), the lowest bit first."""
    padded = np.pad(allowed, [*[(0, 0)] * (allowed.ndim - 1), (0, -allowed.shape[-1] % 32)])
    return np.packbits(padded, axis=-1, bitorder="little").view("<i4")


def run(engine: Engine) -> dict[int, list[Event]]:
    """All events to the end, by text."""
    found: dict[int, list[Event]] = {}
    while engine.is_busy:
        for event in engine.step():
            found.setdefault(event.id, []).append(event)
    assert all(held == 0 for held, _ in engine.stats().blocks)
    return found


def tokens(events: list[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def alone(model: Any, request: Request) -> list[int]:
    engine = Engine(model)
    [id] = engine.submit(request)
    return tokens(run(engine)[id])


def differs(model: Any, prompt: list[int], made: list[int]) -> bool:
    """Whether a greedy text leaves the one of the prompt alone, which it may where two tokens are as likely."""
    for token, (wanted, logprobs) in zip(
        made, generate_step(prompt, model, max_tokens=len(made)), strict=True
    ):
        if token != wanted:
            second, first = np.sort(np.array(logprobs))[-2:]
            assert first - second < CLOSE
            return True
    return False


class Crowd:
    """Requests of random lengths that come in waves."""

    def __init__(self, seed: int, count: int = 200) -> None:
        self.rng = np.random.default_rng(seed)
        starts = [self.ids(40) for _ in range(3)]
        self.requests = []
        for _ in range(count):
            start = starts[self.rng.integers(3)] if self.rng.random() < 0.3 else []
            prompt = start + self.ids(int(self.rng.integers(1, 70)))
            limit = int(self.rng.integers(1, 40))
            self.requests.append(Request(prompt, limit, priority=int(self.rng.integers(2))))
        blocks = [-(-(len(r.prompt) + r.limit) // 32) for r in self.requests]
        self.wanted = max(sum(blocks[i : i + 20]) for i in range(0, count, 20))

    def ids(self, count: int) -> list[int]:
        return self.rng.integers(0, 250, count).tolist()

    def run(self, engine: Engine) -> tuple[dict[int, Request], dict[int, list[Event]]]:
        """Requests and events by text."""
        known: dict[int, Request] = {}
        found: dict[int, list[Event]] = {}
        queue = self.requests.copy()
        while queue or engine.is_busy:
            if len(known) - sum(bool(e[-1].finish_reason) for e in found.values()) < 10:
                for request in queue[:20]:
                    n = int(self.rng.integers(2, 4)) if self.rng.random() < 0.1 else 1
                    known |= dict.fromkeys(engine.submit(request, n), request)
                del queue[:20]
            if self.rng.random() < 0.05:
                engine.cancel(int(self.rng.choice(list(known))))
            for event in engine.step():
                found.setdefault(event.id, []).append(event)
        return known, found


def check_texts(model: Any, known: dict[int, Request], found: dict[int, list[Event]]) -> None:
    """Every text is that of its request alone, or was cancelled."""
    assert found.keys() == known.keys()
    exceptions = 0
    for id, events in found.items():
        wanted, made, reason = known[id], tokens(events), events[-1].finish_reason
        assert [event for event in events if event.finish_reason] == events[-1:]
        assert reason == ("length" if len(made) == wanted.limit else "cancelled")
        exceptions += differs(model, list(wanted.prompt), made) if made else 0
    assert exceptions <= len(known) // 20
