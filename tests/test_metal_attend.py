"""attend on the metal backend: split contexts, tiles of queries, checked mode, and the order of launches on a pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import METAL
from msl import metal_on_cpu
from pages import Layer
from test_attend import options

from mlx_ferrum import launch
from mlx_ferrum.kernels import attend
from mlx_ferrum.launch import Kernel, Launch
from mlx_ferrum.state.kinds import KV

ROUNDED = 2.0**-11 + 1e-5  # of the largest: results become float16, sums are float32
SEEDS = (1, 2)


@pytest.fixture
def metal() -> Iterator[None]:
    """The metal backend, on the GPU or on the host."""
    with METAL.in_use():
        yield


def assert_attends(layer: Layer, counts: dict[int, int], **how: Any) -> None:
    rows = layer.append(counts)
    found, wanted = layer.attended(rows, **how), layer.wanted(rows, **how)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= ROUNDED * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("softcap, sinks", [(0.0, False), (3.0, True)])
def test_long_contexts_are_split(metal: None, bits: int, softcap: float, sinks: bool) -> None:
    """Beside short ones, which have nothing for most runs; windows end amid them."""
    recorded = Recorded()
    for window in (None, 1111):
        layer = Layer(METAL, KV(1, 20, 36, window, bits), 3, size=32)
        layer.begin(2607, 5, 1300)
        with launch.use_runner(recorded):
            for new in (1, 2):
                how = options(3, 20, softcap=softcap, sinks=sinks)
                assert_attends(layer, {0: new, 1: 1, 2: new}, **how)
    assert [name for name, _, _ in recorded.seen].count("merge_runs") == 4


@pytest.mark.parametrize("size", [2, 4, 32])
def test_queries_of_any_number_share_keys(metal: None, size: int) -> None:
    """Rows and heads of a group in tiles of 1, 2, 4 and 8, also some that they do not fill."""
    for heads, groups in ((1, 1), (6, 3), (3, 1), (11, 1)):
        layer = Layer(METAL, KV(groups, 12, 12, 40), heads, size=size)
        layer.begin(0, 37, 95)
        for counts in ({0: 1, 1: 1, 2: 1}, {2: 5, 0: 2}, {1: 8, 0: 1}):
            assert_attends(layer, counts, scale=0.3)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("held", [(70, 9), (1100, 9)], ids=["one launch", "runs"])
def test_no_finding(bits: int, held: tuple[int, ...]) -> None:
    for seed in SEEDS:
        with METAL.in_use(), metal_on_cpu(checked=True, seed=seed) as host:
            layer = Layer(METAL, KV(1, 20, 36, None, bits), 3, size=4)
            layer.begin(*held)
            assert_attends(layer, {0: 2, 1: 1}, **options(3, 20, softcap=3.0, sinks=True))
        assert not host.findings, "\n".join(map(str, host.findings))


class Recorded:
    """A runner that notes what launches read and made. Outputs come from the runner before."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[mx.array], list[mx.array]]] = []
        self.before = launch._runner

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        made = self.before(kernel, call)
        self.seen.append((kernel.name, list(call.arrays), made))
        return made

    def follows(self, later: int, earlier: int) -> bool:
        """Whether a launch reads what another made, or what was made from it."""
        arrays = self.seen[later][1]
        parents = [
            n for n in range(later) if any(x is made for x in arrays for made in self.seen[n][2])
        ]
        return any(n == earlier or self.follows(n, earlier) for n in parents)


@pytest.mark.parametrize("bits", [16, 8])
def test_each_launch_over_a_pool_follows_those_before(metal: None, bits: int) -> None:
    """MLX knows nothing of writes in place: only what a launch takes from another orders the two."""
    layer = Layer(METAL, KV(1, 12, 12, bits=bits), 2)
    layer.begin(3)
    recorded = Recorded()
    with launch.use_runner(recorded):
        for new in (1, 4, 1):
            rows = layer.append({0: new})
            layer.attended(rows, scale=0.3)
            layer.attended(rows, scale=0.1)  # a layer that shares keys and values
    names = [name for name, _, _ in recorded.seen]
    assert names == [f"append_{bits}", f"attend_{bits}", f"attend_{bits}"] * 3
    for n in range(1, len(names)):
        assert recorded.follows(n, n - 1), n


def test_a_step_copies_no_more_where_contexts_are_long(metal: None) -> None:
    """Inputs of a decode step besides the pool, and outputs, have the same bytes."""
    moved = []
    for held in (40, 400):
        layer = Layer(METAL, KV(1, 12, 12), 2)
        layer.begin(held)
        recorded = Recorded()
        with launch.use_runner(recorded):
            layer.attended(layer.append({0: 1}), scale=0.3)
        pool = [id(x) for x in layer.states.storages[0].arrays]
        arrays = [x for _, given, made in recorded.seen for x in (*given, *made)]
        moved.append(sum(x.nbytes for x in arrays if id(x) not in pool))
    assert moved[0] == moved[1]


def test_copies_and_growth_come_after_what_was_appended(metal: None) -> None:
    """A fork writes into a copy of the last block; later texts need more blocks than there were."""
    layer = Layer(METAL, KV(1, 12, 12), 2, size=4)
    layer.begin(6)
    layer.texts.append(layer.states.fork(layer.texts[0]))
    layer.past.append(layer.past[0])
    for counts in ({0: 1, 1: 2}, {0: 70, 1: 1}, {1: 90, 0: 1}):
        assert_attends(layer, counts, scale=0.3)


def test_runs_fill_a_gpu() -> None:
    """None where there are threadgroups enough, or few keys."""

    def runs(window: int | None, longest: int, threadgroups: int) -> int:
        one = mx.zeros(1)
        seen = attend.Seen(one, one, one, window, 1, longest)
        return attend._runs(attend._visible(seen, 256), threadgroups, 256)

    assert runs(None, 511, 8) == 1
    assert runs(None, 4096, 8) == 8
    assert runs(None, 1 << 20, 8) == 32
    assert runs(None, 1 << 20, 256) == runs(None, 1 << 20, 1000) == 1
    assert runs(1024, 1 << 20, 8) == 2
