"""Figures for Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from mlx_ferrum.engine import Stats

    from .reply import Answer

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)  # seconds
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
PREFIX = "mlx_ferrum_"


class Times(Collector):
    """A histogram that costs little: a token must not pay for a lock and a scan of the buckets."""

    def __init__(self, name: str, about: str, bounds: Sequence[float], model: str) -> None:
        """bounds: seconds, ascending."""
        self._name, self._about, self._bounds, self._model = name, about, bounds, model
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What Prometheus reads."""
        family = HistogramMetricFamily(f"{PREFIX}{self._name}", self._about, labels=["model"])
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family.add_metric([self._model], buckets, self._sum)
        yield family


class Metrics:
    """All figures of a service, in a registry of their own."""

    def __init__(self, model: str) -> None:
        """model: its name, which all figures carry."""
        self._registry = CollectorRegistry()
        self._model = model
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("prompt_tokens_cached", "Of these, not computed again")
        self._generated = self._counter("generated_tokens", "Tokens that clients were sent")
        self._requests = Counter(
            f"{PREFIX}requests", "Requests by status", ["path", "status"], registry=self._registry
        )
        first = Times("time_to_first_token_seconds", "From request to token", FIRST, model)
        between = Times("time_between_tokens_seconds", "Of one text", BETWEEN, model)
        for times in (first, between):
            self._registry.register(times)
        self._first, self._between = first, between
        self._gauges = {
            name: Gauge(f"{PREFIX}{name}", about, ["model"], registry=self._registry).labels(model)
            for name, about in [
                ("running", "Texts that run"),
                ("waiting", "Texts that wait"),
                ("steps", "Forward passes so far"),
                ("batch_size", "Mean number of texts in a step, since the last report"),
                ("prefix_hits", "Positions that the pool had already"),
                ("preemptions", "Texts that had to wait again"),
            ]
        }
        self._blocks = Gauge(
            f"{PREFIX}blocks",
            "Blocks of a pool",
            ["model", "pool", "kind"],
            registry=self._registry,
        )
        self._before = (0, 0)  # steps, sequences in them

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"{PREFIX}{name}", about, ["model"], registry=self._registry).labels(
            self._model
        )

    def arrived(self, seconds: float, is_first: bool) -> None:
        """A token has come, so long after the one before it or the request."""
        (self._first if is_first else self._between).observe(seconds)

    def ended(self, answer: Answer) -> None:
        """A request's texts have ended."""
        self._cached.inc(answer.cached)
        self._generated.inc(answer.generated)

    def requested(self, path: str, status: int) -> None:
        """A response was sent. path: of a route, not what a client wrote."""
        self._requests.labels(path, str(status)).inc()

    def report(self, stats: Stats | None) -> bytes:
        """The text that Prometheus reads. stats: of the engine, if there is one."""
        if stats is not None:
            for name in ("running", "waiting", "steps", "preemptions"):
                self._gauges[name].set(getattr(stats, name))
            self._gauges["prefix_hits"].set(stats.hits)
            sequences = sum(size * count for size, count in stats.batch_sizes.items())
            steps, before = self._before
            if stats.steps > steps:
                self._gauges["batch_size"].set((sequences - before) / (stats.steps - steps))
            self._before = stats.steps, sequences
            for index, (held, size) in enumerate(stats.blocks):
                self._blocks.labels(self._model, str(index), "held").set(held)
                if size is not None:
                    self._blocks.labels(self._model, str(index), "size").set(size)
        return generate_latest(self._registry)
