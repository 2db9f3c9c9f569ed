"""Figures for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from mlx_ferrum.engine import Stats

    from .reply import Answer

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)  # seconds
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
PREFIX = "mlx_ferrum_"


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
        self._first = self._histogram("time_to_first_token_seconds", "From request to token", FIRST)
        self._between = self._histogram("time_between_tokens_seconds", "Of one text", BETWEEN)
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

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(
            f"{PREFIX}{name}", about, ["model"], registry=self._registry, buckets=buckets
        )
        return made.labels(self._model)

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
