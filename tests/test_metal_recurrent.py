"""The kernels of recurrent layers against float64, and in checked mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from msl import metal_on_cpu
from msl.mutations import survivors
from slotted_rows import convolved
from slotted_rows import delta as delta_rule

from mlx_ferrum import options
from mlx_ferrum.kernels.gate import gate
from mlx_ferrum.kernels.gated_delta import gated_delta
from mlx_ferrum.kernels.gated_norm import gated_norm
from mlx_ferrum.kernels.short_conv import Turns, short_conv

# Of the largest result: sums of some hundred terms in float32, carried over some hundred rows.
FLOATS = 2e-5
SEEDS = (1, 2)
SLOTS = 7
EPS = 1e-6
LARGE_EPS = 0.3  # beside square sums of about the size of a head


@dataclass
class Batch:
    """Rows of sequences, which go from slots of `sources` into those of `targets`."""

    rows: tuple[int, ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum([0, *self.rows]).astype(np.int32)

    @property
    def n(self) -> int:
        return sum(self.rows)

    def turns(self) -> Turns:
        slots = (mx.array(x, mx.int32) for x in (self.sources, self.targets))
        return Turns(mx.array(self.starts), *slots, max(self.rows))

    def wanted(self, one: Any, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """one: (rows of the batch, what a sequence holds) -> its results and what it holds then. Also all slots."""
        slots, results = held.astype(np.float64), []
        for i, source in enumerate(self.sources):
            before = held[source] if source >= 0 else np.zeros(held.shape[1:])
            rows = slice(self.starts[i], self.starts[i + 1])
            result, slots[self.targets[i]] = one(rows, before.astype(np.float64))
            results.append(result)
        return np.concatenate(results), slots


BATCHES = {
    "one": Batch((1,), (3,), (0,)),
    "decode": Batch((1, 1, 1), (-1, 4, 4), (6, 0, 2)),
    "ragged": Batch((5, 1, 21, 2), (2, -1, 2, 5), (0, 1, 6, 3)),
}


LONG = Batch((300,), (1,), (2,))


def drawn(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """In float64."""
    return np.exp(-np.logaddexp(0, -x.astype(np.float64)))


def assert_close(found: Any, wanted: np.ndarray, bound: float = FLOATS) -> None:
    found = np.array(found).astype(np.float64)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


def convolve(batch: Batch, channels: int, taps: int) -> None:
    x, weight = drawn(1, batch.n, channels), drawn(2, channels, taps)
    held = drawn(3, SLOTS, taps - 1, channels)
    columns = mx.array(held)
    y, mark = short_conv(mx.array(x), mx.array(weight), columns, batch.turns(), mark=None)
    mx.eval(y, mark)
    wanted, slots = batch.wanted(lambda rows, c: convolved(x[rows], weight, c), held)
    assert_close(y, wanted)
    assert np.array_equal(np.array(columns), slots.astype(np.float32))


@dataclass
class Delta:
    """A layer's sizes.

    half_life: of its heads, tokens, from the first to the last, where softplus gives 1
    spread, shift: of a and b; the more negative they are, the longer a state stays as it is
    """

    size: int
    key_heads: int
    repeats: int
    tiled: bool
    half_life: tuple[float, float] = (1, 500)
    spread: float = 9
    shift: float = 0

    def run(self, batch: Batch) -> None:
        heads = self.key_heads * self.repeats
        qkv = drawn(1, batch.n, (2 * self.key_heads + heads) * self.size)
        a, b = (
            drawn(x, batch.n, heads, scale=self.spread) + np.float32(self.shift) for x in (2, 3)
        )
        decay = -np.log(2) / np.geomspace(*self.half_life, heads)
        rule = options.Delta(
            mx.array(decay.astype(np.float32)),
            mx.array(drawn(4, heads)),
            self.key_heads,
            LARGE_EPS,
            self.tiled,
        )
        held = drawn(5, SLOTS, heads, self.size, self.size)
        matrices = mx.array(held)
        given = map(mx.array, (qkv, a, b))
        o, mark = gated_delta(*given, matrices, batch.turns(), delta=rule, mark=None)
        mx.eval(o, mark)

        def one(rows: slice, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return delta_rule(qkv[rows], a[rows], b[rows], rule, before)

        wanted, slots = batch.wanted(one, held)
        assert_close(o, wanted)
        assert_close(matrices, slots)


DELTAS = {
    "as in models": Delta(128, 2, 2, tiled=True),
    "grouped, of 3": Delta(16, 2, 3, tiled=False),
    "tiled, of 3": Delta(36, 2, 3, tiled=True),
    "as many keys as values": Delta(16, 5, 1, tiled=False),
    "the largest": Delta(256, 1, 1, tiled=True),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels, taps", [(131, 4), (24, 2)])
def test_short_conv(batch: str, channels: int, taps: int) -> None:
    with metal_on_cpu():
        convolve(BATCHES[batch], channels, taps)


@pytest.mark.parametrize("batch", ["one", "ragged"])
@pytest.mark.parametrize("delta", DELTAS)
def test_gated_delta(batch: str, delta: str) -> None:
    with metal_on_cpu():
        DELTAS[delta].run(BATCHES[batch])


def test_long_prompts_and_long_memories() -> None:
    """Of 300 tokens, which a head keeps nearly whole, and another hardly at all."""
    with metal_on_cpu():
        Delta(16, 2, 3, tiled=False, half_life=(0.5, 1e5)).run(LONG)


def test_small_steps_add_up() -> None:
    """softplus of about e^-10 times 14: it has to be exact, not only the decay of a step."""
    slow = Delta(16, 1, 2, tiled=False, half_life=(0.05, 0.05), spread=0, shift=-10)
    with metal_on_cpu():
        slow.run(LONG)


@pytest.mark.parametrize("size", [8, 128, 37])
def test_gated_norm(size: int) -> None:
    x, weight, z = drawn(1, 3, 5, size), drawn(2, size), drawn(3, 3, 5 * size, scale=20)
    with metal_on_cpu():
        found = gated_norm(mx.array(x), mx.array(weight), 1e-2, mx.array(z))
        wide = x.astype(np.float64)
        normed = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-2) * weight
        assert_close(found, normed.reshape(z.shape) * z * sigmoid(z))


@pytest.mark.parametrize("size", [8, 37])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["float32", "float16"])
def test_gate(size: int, dtype: mx.Dtype) -> None:
    x, pairs = mx.array(drawn(1, 3, 5, size)).astype(dtype), drawn(2, 3, 5, 2 * size, scale=20)
    with metal_on_cpu():
        found = gate(x, mx.array(pairs))
        assert found.dtype == mx.float32
        wide = np.array(x).astype(np.float64)
        assert_close(found, wide * sigmoid(pairs[..., size:]))


ONE = Turns(mx.array([0, 3], mx.int32), mx.array([0]), mx.array([1]), 3)
TWO = Turns(mx.array([0, 1, 3], mx.int32), mx.array([0]), mx.array([1]), 2)


def ask_delta(
    channels: int, heads: int, state: tuple[int, ...], turns: Turns = ONE, given: int = 0
) -> object:
    """given: numbers of decay and dt, if not one a head"""
    x, vector = mx.zeros((3, heads)), mx.zeros(given or heads)
    rule = options.Delta(vector, vector, 1, EPS, is_tiled=True)
    return gated_delta(mx.zeros((3, channels)), x, x, mx.zeros(state), turns, delta=rule, mark=None)


def ask_conv(weight: tuple[int, int], columns: tuple[int, ...], turns: Turns = ONE) -> object:
    return short_conv(mx.zeros((3, 8)), mx.zeros(weight), mx.zeros(columns), turns, mark=None)


@pytest.mark.parametrize(
    "ask, error, said",
    [
        (lambda: ask_conv((9, 4), (2, 3, 9)), ValueError, r"x \(3, 8\) does not fit a weight of"),
        (lambda: ask_conv((8, 4), (2, 4, 8)), ValueError, r"columns of \(2, 4, 8\)"),
        (lambda: ask_conv((8, 1), (2, 0, 8)), ValueError, r"a weight of \(8, 1\)"),
        (lambda: ask_conv((8, 4), (2, 3, 8), TWO), ValueError, "1 sources and 1 targets for 2 s"),
        (lambda: ask_delta(48, 2, (2, 2, 16, 16)), ValueError, "48 channels do not fit"),
        (lambda: ask_delta(64, 2, (2, 2, 16, 8)), ValueError, "64 channels do not fit"),
        (lambda: ask_delta(64, 2, (2, 2, 16, 16), TWO), ValueError, "1 sources and 1 targets"),
        (lambda: ask_delta(64, 2, (2, 2, 16, 16), given=3), ValueError, r"decay \(3,\)"),
        (lambda: ask_delta(771, 1, (2, 1, 257, 257)), NotImplementedError, "257 rows, expected at"),
        (
            lambda: gated_norm(mx.zeros((3, 2, 8)), mx.ones(8), EPS, mx.zeros((3, 8))),
            ValueError,
            r"a gate of \(3, 8\)",
        ),
        (lambda: gate(mx.zeros((3, 2, 8)), mx.zeros((3, 2, 8))), ValueError, r"gates of \(3, 2, 8"),
    ],
)
def test_what_does_not_fit_is_refused(
    ask: Callable[[], object], error: type[Exception], said: str
) -> None:
    with metal_on_cpu(), pytest.raises(error, match=said):
        ask()


@pytest.mark.parametrize("batch", ["decode", "ragged"])
def test_no_finding(batch: str) -> None:
    for seed in SEEDS:
        with metal_on_cpu(checked=True, seed=seed) as host:
            convolve(BATCHES[batch], 131, 4)
            DELTAS["tiled, of 3"].run(BATCHES[batch])
            x, z = mx.array(drawn(1, 3, 5, 37)), mx.array(drawn(2, 3, 5, 74))
            mx.eval(gate(x, z), gated_norm(x, x[0, 0], EPS, x.reshape(3, -1)))
        assert not host.findings, "\n".join(map(str, host.findings))


def test_each_barrier_is_needed() -> None:
    def run() -> None:
        with suppress(AssertionError):  # a kernel that lacks a barrier gives other numbers
            DELTAS["tiled, of 3"].run(BATCHES["ragged"])

    assert survivors(run) == []
