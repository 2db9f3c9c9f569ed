"""What layers read from disk: in the metrics of the server, and in what `generate` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from backends import Backend
from servers import Served, served

from mlx_ferrum import budget, catalog, gguf, memory, sizes
from mlx_ferrum.generate import command
from mlx_ferrum.server.metrics import Metrics
from mlx_ferrum.traffic import Traffic, traffic

NAMES = (
    "uses",
    "reads",
    "read_bytes",
    "wait_seconds",
    "judged",
    "foretold",
    "reads_ahead",
    "reads_ahead_useful",
)
LINE = re.compile(r'mlx_ferrum_expert_(\w+)\{layer="(\d+)",model="(\w+)"\} (\S+)')


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """Of tiny-moe, where memory has room for three experts a layer."""
    found = sizes.of_file(gguf.read(catalog.resolve("tiny-moe")))
    assert found is not None
    pool = found.pool(min(found.context, budget.POSITIONS))
    nbytes = found.dense + pool + budget.BESIDE + 3 * found.one_each
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available", lambda: nbytes)
        with served(catalog.resolve("tiny-moe")) as made:
            yield made


def told(text: str) -> dict[int, dict[str, float]]:
    """The figures of each layer."""
    found: dict[int, dict[str, float]] = {}
    for name, layer, _, value in LINE.findall(text):
        if not name.endswith("_created"):
            found.setdefault(int(layer), {})[name.removesuffix("_total")] = float(value)
    return found


def test_metrics_of_layers(server: Served) -> None:
    before = 0.0
    for _ in range(2):
        body = {"prompt": "In the beginning", "max_tokens": 8}
        assert server.http.post("/v1/completions", json=body).status_code == 200
        figures = told(server.http.get("/metrics").text)
        layers = traffic(server.model.streams)
        assert list(figures) == [layer.layer for layer in layers] == list(range(4))
        for layer in layers:
            found = figures[layer.layer]
            assert [found[name] for name in NAMES] == pytest.approx(list(layer[2:]))
            assert [found["slots"], found["hit_ratio"]] == pytest.approx([3, layer.hits])
            assert 0 < layer.hits < 1 and layer.nbytes > 0
        total = sum(found["uses"] for found in figures.values())
        assert total == server.model.streams.counts().used > before
        before = total


def chosen(metrics: Metrics) -> dict[int, dict[str, float]]:
    """The figures of each layer that are not 0."""
    figures = told(metrics.report().decode())
    return {layer: {k: v for k, v in each.items() if v} for layer, each in figures.items()}


def test_counters_go_on_when_a_model_is_loaded_again() -> None:
    metrics = Metrics()
    figures = metrics.of("m")
    for used in (10, 30):
        figures.take_traffic([Traffic(2, 5, used, used // 2, 100 * used, used / 8)])
    figures.closed()
    counts = {"uses": 30.0, "reads": 15.0, "read_bytes": 3000.0, "wait_seconds": 3.75}
    assert chosen(metrics) == {2: counts}
    figures.loaded()
    figures.take_traffic([Traffic(2, 6, 4, 1, 7, 0.25)])
    assert chosen(metrics) == {
        2: {"uses": 34, "reads": 16, "read_bytes": 3007, "wait_seconds": 4, "slots": 6, "hit_ratio": 0.75}
    }  # fmt: skip


def test_nothing_is_said_of_models_that_are_mapped() -> None:
    metrics = Metrics()
    metrics.of("m").take_traffic(traffic(None))
    assert told(metrics.report().decode()) == {}


def test_generate_says_what_each_layer_read(cpu: Backend, capsys: Any) -> None:
    options = ["--model", "tiny-moe", "--max-tokens", "6", "--backend", "cpu", "--profile"]
    options += ["--expert-memory", "1MB"]
    assert command.main([*options, "--json"]) == 0
    experts = json.loads(capsys.readouterr().out)["experts"]
    assert [layer["layer"] for layer in experts["layers"]] == list(range(4))
    for name in ("used", "read", "nbytes", "waited"):
        assert sum(layer[name] for layer in experts["layers"]) == pytest.approx(experts[name])
    assert command.main(options) == 0
    rows = [line.split() for line in capsys.readouterr().err.splitlines()[-4:]]
    for row, layer in zip(rows, experts["layers"], strict=True):
        assert row[:3] == [str(layer[name]) for name in ("layer", "slots", "used")]
        assert row[3] == f"{1 - layer['read'] / layer['used']:.1%}"
        assert row[4] == f"{layer['nbytes'] / 1e6:.1f}"
