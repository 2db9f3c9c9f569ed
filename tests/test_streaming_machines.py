"""The simulator of bench/streaming_machines.py: routing, hit rates and sizes. Its speeds are estimates."""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))

bench = import_module("streaming_machines")


def test_sizes_are_those_of_published_files() -> None:
    """Qwen3-30B-A3B-Q4_K_M.gguf has 18.6 GB."""
    small, _, large = (model.sizes() for model in bench.MODELS)
    assert small.nbytes == pytest.approx(18.6e9, rel=0.01)
    assert large.experts / large.nbytes > 0.95
    assert small.pool(1) == 2 * 48 * 4 * 256


@pytest.mark.parametrize("name", ["even", "skewed"])
def test_drawn_routing(name: str) -> None:
    rng = np.random.default_rng(1)
    trace = getattr(bench, name)(rng, 400, 32, 4)
    assert len(trace) == 400
    assert all(len(set(chosen)) == 4 and max(chosen) < 32 for chosen in trace)
    again = np.mean([len(set(a) & set(b)) / 4 for a, b in pairwise(trace)])
    counts = np.sort(np.bincount(np.concatenate(trace), minlength=32))
    if name == "even":
        assert abs(again - 4 / 32) < 0.03 and counts[0] > counts[-1] / 3
    else:
        assert again > bench.REPEATED and counts[0] < counts[-1] / 3


def test_even_use_finds_the_share_that_is_in_memory() -> None:
    trace = bench.even(np.random.default_rng(2), 2000, 32, 4)
    assert bench.curve([trace], [0, 8, 16, 32]) == pytest.approx([0, 0.25, 0.5, 1], abs=0.02)


def test_speed_by_hand() -> None:
    model, machine = bench.MODELS[0], bench.MACHINES[0]
    found = model.sizes()
    hits = {kind: bench.Routing([0, 1], [0, 1]) for kind in bench.KINDS}
    row = bench.estimate(machine, found, hits)
    assert row["share"] == row["nbytes"] / found.experts == pytest.approx(row["hits"]["even"])
    seconds = (found.dense + found.a_token) / (machine.bandwidth * bench.MIXTURE_SHARES[0])
    assert row["in_memory"] == pytest.approx(1 / seconds)
    seconds += (1 - row["share"]) * found.a_token / 7e9
    assert row["speeds"]["7"]["trace"] == pytest.approx(1 / seconds)
    large = bench.estimate(bench.MACHINES[-1], found, hits)
    assert large["is_mapped"] and large["speeds"]["3"]["even"] == large["in_memory"]
