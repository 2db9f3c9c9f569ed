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
    from mlx_ferrum.traffic import Traffic

    from .reply import Answer

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)  # seconds
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
PREFIX = "mlx_ferrum_"
COUNTERS = (
    ("prompt_tokens", "Tokens of prompts"),
    ("prompt_tokens_cached", "Of these, not computed again"),
    ("generated_tokens", "Tokens that clients were sent"),
    ("loads", "How often the model was loaded"),
)
GAUGES = (
    ("loaded", "Whether the model is in memory"),
    ("running", "Texts that run"),
    ("waiting", "Texts that wait"),
    ("steps", "Forward passes so far"),
    ("batch_size", "Mean number of texts in a step, since the last report"),
    ("prefix_hits", "Positions that the pool had already"),
    ("preemptions", "Texts that had to wait again"),
)
# of each layer whose experts are read from disk
LAYER_COUNTERS = (
    ("expert_uses", "used", "Uses of an expert's matrices, gate and up apart from down"),
    ("expert_reads", "read", "Of these, read from disk"),
    ("expert_read_bytes", "nbytes", "Bytes of experts that were read from disk"),
    ("expert_wait_seconds", "waited", "That threads waited for reads"),
    ("expert_judged", "judged", "Uses of gate and up for which experts had been predicted"),
    ("expert_foretold", "foretold", "Of these, predicted ones"),
    ("expert_reads_ahead", "ahead", "Reads of gate and up before the choice"),
    ("expert_reads_ahead_useful", "useful", "Of these, those that were used next"),
)
LAYER_GAUGES = (
    ("expert_slots", "slots", "Experts that are in memory at a time"),
    (
        "expert_hit_ratio",
        "hits",
        "Uses that found their expert in memory, since the model was loaded",
    ),
)


class Times(Collector):
    """A histogram of each model that costs little: a token must not pay for a lock and a scan of the buckets."""

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        """bounds: seconds, ascending."""
        self._name, self._about, self.bounds = name, about, bounds
        self._series: dict[str, Series] = {}

    def of(self, model: str) -> Series:
        """Of one model."""
        return self._series.setdefault(model, Series(self.bounds))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What Prometheus reads."""
        family = HistogramMetricFamily(f"{PREFIX}{self._name}", self._about, labels=["model"])
        names = [*map(str, self.bounds), "+Inf"]
        for model, series in self._series.items():
            buckets = list(zip(names, accumulate(series.counts), strict=True))
            family.add_metric([model], buckets, series.sum)
        yield family


class Series:
    """Seconds of one model, counted by buckets."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds


class Metrics:
    """All figures of a server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._figures: dict[str, Figures] = {}
        self._requests = Counter(
            f"{PREFIX}requests", "Requests by status", ["path", "status"], registry=registry
        )
        self.counters = {
            name: Counter(f"{PREFIX}{name}", about, ["model"], registry=registry)
            for name, about in COUNTERS
        }
        self.gauges = {
            name: Gauge(f"{PREFIX}{name}", about, ["model"], registry=registry)
            for name, about in GAUGES
        }
        layer = ["model", "layer"]
        self.layer_counters = {
            field: Counter(f"{PREFIX}{name}", about, layer, registry=registry)
            for name, field, about in LAYER_COUNTERS
        }
        self.layer_gauges = {
            field: Gauge(f"{PREFIX}{name}", about, layer, registry=registry)
            for name, field, about in LAYER_GAUGES
        }
        labels = ["model", "pool", "kind"]
        self.blocks = Gauge(f"{PREFIX}blocks", "Blocks of a pool", labels, registry=registry)
        self.first = Times("time_to_first_token_seconds", "From request to token", FIRST)
        self.between = Times("time_between_tokens_seconds", "Of one text", BETWEEN)
        for times in (self.first, self.between):
            registry.register(times)

    def of(self, model: str) -> Figures:
        """The figures of a model, which go on when it is loaded again."""
        if model not in self._figures:
            self._figures[model] = Figures(self, model)
        return self._figures[model]

    def requested(self, path: str, status: int) -> None:
        """A response was sent. path: of a route, not what a client wrote."""
        self._requests.labels(path, str(status)).inc()

    def report(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class Figures:
    """The figures of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self._counters = {name: each.labels(model) for name, each in metrics.counters.items()}
        self._first, self._between = metrics.first.of(model), metrics.between.of(model)
        self._gauges = {name: each.labels(model) for name, each in metrics.gauges.items()}
        self._pools: set[tuple[str, str]] = set()
        self._before = (0, 0)  # steps, sequences in them
        self._layers: dict[int, Traffic] = {}  # as they were told last

    def loaded(self) -> None:
        """The model is in memory."""
        self._counters["loads"].inc()
        self._gauges["loaded"].set(1)
        self._before = (0, 0)

    def closed(self) -> None:
        """The model is not in memory any more."""
        for gauge in self._gauges.values():
            gauge.set(0)
        for index, kind in self._pools:
            self._metrics.blocks.remove(self._model, index, kind)
        self._pools.clear()
        for layer in self._layers:
            for each in self._metrics.layer_gauges.values():
                each.remove(self._model, str(layer))
        self._layers.clear()

    def asked(self, tokens: int) -> None:
        """A request has come, whose prompts have so many tokens."""
        self._counters["prompt_tokens"].inc(tokens)

    def arrived(self, seconds: float, is_first: bool) -> None:
        """A token has come, so long after the one before it or the request."""
        (self._first if is_first else self._between).observe(seconds)

    def ended(self, answer: Answer) -> None:
        """A request's texts have ended."""
        self._counters["prompt_tokens_cached"].inc(answer.cached)
        self._counters["generated_tokens"].inc(answer.generated)

    def take(self, stats: Stats) -> None:
        """The figures of its engine."""
        for name in ("running", "waiting", "steps", "preemptions"):
            self._gauges[name].set(getattr(stats, name))
        self._gauges["prefix_hits"].set(stats.hits)
        sequences = sum(size * count for size, count in stats.batch_sizes.items())
        steps, before = self._before
        if stats.steps > steps:
            self._gauges["batch_size"].set((sequences - before) / (stats.steps - steps))
        self._before = stats.steps, sequences
        for index, (held, size) in enumerate(stats.blocks):
            self._set_blocks(str(index), "held", held)
            if size is not None:
                self._set_blocks(str(index), "size", size)

    def take_traffic(self, layers: Iterable[Traffic]) -> None:
        """What its layers have read from disk so far."""
        for now in layers:
            before = self._layers.get(now.layer)
            labels, new = (self._model, str(now.layer)), now.since(before) if before else now
            for field, counter in self._metrics.layer_counters.items():
                counter.labels(*labels).inc(getattr(new, field))
            for field, gauge in self._metrics.layer_gauges.items():
                gauge.labels(*labels).set(getattr(now, field))
            self._layers[now.layer] = now

    def _set_blocks(self, pool: str, kind: str, value: int) -> None:
        self._pools.add((pool, kind))
        self._metrics.blocks.labels(self._model, pool, kind).set(value)
