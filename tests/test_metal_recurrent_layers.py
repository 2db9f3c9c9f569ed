"""Recurrent layers on the metal backend: beside the reference over many passes, and the order of their launches."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import METAL, REFERENCE
from metal_call import needs_host
from msl import metal_on_cpu
from msl.recorder import Recorder, recording
from msl.replay import differences
from msl.schedule import APART, Limits, schedule

from mlx_ferrum import ops
from mlx_ferrum.batch import Batch, RecurrentPlace
from mlx_ferrum.models.hybrid import DeltaArgs
from mlx_ferrum.state.kinds import Recurrent
from mlx_ferrum.state.model import ModelStates

EPS = 1e-6
FLOATS = 2e-5  # of the largest: float32 sums in another order, over some hundred rows
LAYERS = {
    "tiled, of 3": (DeltaArgs(kernel=4, size=36, key_heads=2, value_heads=6), True),
    "grouped, of 2": (DeltaArgs(kernel=4, size=16, key_heads=2, value_heads=4), False),
    "one head of each": (DeltaArgs(kernel=2, size=16, key_heads=1, value_heads=1), False),
}


class RandomRows:
    """A layer without products, whose inputs are drawn. states: of the backend in use

    half_lives: of the first value head and of the last one, in tokens
    """

    def __init__(
        self,
        sizes: DeltaArgs,
        *,
        tiled: bool,
        half_lives: tuple[float, float] = (1, 500),
        seed: int = 0,
    ) -> None:
        self.sizes, self.rng = sizes, np.random.default_rng(seed)
        heads = sizes.value_heads
        kind = Recurrent(sizes.channels, sizes.kernel - 1, heads, sizes.size)
        self.states = ModelStates([kind], ops.allocate, block=4)
        self.texts: list[Any] = []
        self.weight = self.draw(sizes.channels, sizes.kernel)
        self.norm = self.draw(sizes.size)
        decay = -np.log(2) / np.geomspace(*half_lives, heads)
        self.delta = ops.Delta(
            mx.array(decay.astype(np.float32)), self.draw(heads), sizes.key_heads, EPS, tiled
        )

    def draw(self, *shape: int) -> mx.array:
        return mx.array(self.rng.normal(size=shape).astype(np.float32))

    def begin(self, count: int) -> None:
        """So many new sequences."""
        self.texts += [self.states.begin() for _ in range(count)]

    def fork(self, i: int) -> None:
        """A new sequence with the state of sequence i."""
        self.texts.append(self.states.fork(self.texts[i]))

    def batch(self, counts: dict[int, int]) -> Batch:
        """The next rows of some sequences, of tokens that differ from all others."""
        n = sum(counts.values())
        rows = [(self.texts[i], count) for i, count in counts.items()]
        return self.states.batch(rows, self.rng.integers(0, 1 << 40, n))

    def __call__(self, counts: dict[int, int]) -> mx.array:
        """A pass, by sequence how many rows it gets: (n, h s)"""
        batch, n = self.batch(counts), sum(counts.values())
        out = self.compute(batch.layer(0), self.draw(n, self.sizes.channels))
        batch.advance()
        return out

    def compute(self, at: RecurrentPlace, x: mx.array) -> mx.array:
        """x: (n, channels) -> (n, h s)"""
        n, heads = x.shape[0], self.sizes.value_heads
        qkv = ops.short_conv(x, self.weight, at)
        o = ops.gated_delta(qkv, 3 * self.draw(n, heads), 3 * self.draw(n, heads), at, self.delta)
        return ops.gated_norm(o, self.norm, EPS, self.draw(n, self.sizes.values))


def passes(name: str) -> list[np.ndarray]:
    """Ragged batches of sequences that begin, fork, stop and go on."""
    sizes, tiled = LAYERS[name]
    layer = RandomRows(sizes, tiled=tiled)
    layer.begin(3)
    out = [layer({0: 19, 1: 1}), layer({2: 2, 0: 1, 1: 33})]
    layer.fork(0)
    layer.fork(0)
    out += [layer({0: 1, 3: 1, 1: 1}), layer({4: 9, 3: 1}), layer({0: 1, 1: 1, 2: 1, 3: 1, 4: 1})]
    return [np.array(x) for x in out]


@pytest.mark.parametrize("name", LAYERS)
def test_passes_are_those_of_the_reference(name: str) -> None:
    with REFERENCE.in_use():
        wanted = passes(name)
    with METAL.in_use():
        found = passes(name)
    for x, y in zip(found, wanted, strict=True):
        assert np.abs(x - y).max() <= FLOATS * np.abs(y).max()


def test_no_finding() -> None:
    for seed in (1, 2):
        with METAL.in_use(), metal_on_cpu(checked=True, seed=seed) as host:
            passes("tiled, of 3")
        assert not host.findings, "\n".join(map(str, host.findings))


def steps(rows: int) -> Recorder:
    """Steps of two sequences, encoded while those before them are in flight. Nothing but their states links them."""
    with METAL.in_use():
        sizes, tiled = LAYERS["one head of each"]
        layer = RandomRows(sizes, tiled=tiled)
        layer.begin(2)
        mx.eval(layer({0: 3, 1: 2}))
        layer.fork(0)
        with recording() as recorder:
            for counts in ({0: 1, 2: 1}, {0: rows, 1: 1}, {2: 1, 0: 1}, {1: 1}):
                mx.async_eval(layer(counts))
    return recorder


@needs_host
@pytest.mark.parametrize("rows", [1, 5])
def test_states_chain_the_launches(rows: int) -> None:
    recorded = steps(rows).recording
    names = [work.name for work in recorded.works]
    assert names.count("short_conv") == names.count("gated_delta") == 4
    for limits in (APART, Limits()):
        made = schedule(recorded, limits)
        assert [str(c) for c in made.conflicts()] == []
        assert [str(d) for d in differences(recorded, made, 50)] == []
