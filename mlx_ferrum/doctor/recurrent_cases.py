"""The self-test's cases of recurrent layers: ragged batches from and into slots, and the gates of hybrid models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..batch import RecurrentPlace
from ..options import Delta
from ..state.kinds import Recurrent
from ..state.model import ModelStates
from .case import Case, Convert, Operations

KERNEL = 4
EPS = 1e-6
# Rows of each sequence in a first pass, and in a second one.
PASSES: list[tuple[Sequence[int], Sequence[int]]] = [
    ([1], [1]),
    ([9, 2, 1], [1, 1, 1]),
    ([1, 20], [17, 3]),
]
# Size of a head, key heads, value heads, whether value heads take key heads in turns.
DELTAS = [(128, 2, 4, True), (40, 2, 6, False)]


def cases(rng: np.random.Generator, type: str) -> Iterator[Case]:
    """type: the name of the cases' group."""
    for rows in PASSES:
        yield _short_conv(rng, type, rows, 131)
        for delta in DELTAS:
            yield _gated_delta(rng, type, rows, *delta)
    for n, heads, size in [(1, 5, 128), (3, 2, 37)]:
        yield _gated_norm(rng, type, n, heads, size)
        yield _gate(rng, type, n, heads, size)


def _short_conv(
    rng: np.random.Generator, type: str, rows: tuple[Sequence[int], ...], channels: int
) -> Case:
    weight = _normal(rng, channels, KERNEL)
    inputs = [_normal(rng, sum(counts), channels) for counts in rows]
    kind = Recurrent(channels, KERNEL - 1, 1, 1)

    def compute(run: Operations, array: Convert) -> Any:
        for x, at in zip(inputs, _passes(run, kind, rows), strict=True):
            y = run.short_conv(array(x), mx.array(weight), at)
        return _with_state(y, at, "columns")

    return Case("short_conv", type, f"{_rows(rows)}, {channels} channels", compute)


def _gated_delta(
    rng: np.random.Generator,
    type: str,
    rows: tuple[Sequence[int], ...],
    size: int,
    keys: int,
    values: int,
    tiled: bool,
) -> Case:
    channels = (2 * keys + values) * size
    inputs = [
        [_normal(rng, sum(counts), width) for width in (channels, values, values)]
        for counts in rows
    ]
    decay, dt = -np.geomspace(1e-3, 1, values).astype(np.float32), _normal(rng, values)
    kind = Recurrent(channels, KERNEL - 1, values, size)

    def compute(run: Operations, array: Convert) -> Any:
        delta = Delta(mx.array(decay), mx.array(dt), keys, EPS, tiled)
        for drawn, at in zip(inputs, _passes(run, kind, rows), strict=True):
            o = run.gated_delta(*map(array, drawn), at, delta)
        return _with_state(o, at, "matrices")

    order = "tiled" if tiled else "grouped"
    heads = f"{values} heads of {size} over {keys}, {order}"
    return Case("gated_delta", type, f"{_rows(rows)}, {heads}", compute)


def _gated_norm(rng: np.random.Generator, type: str, n: int, heads: int, size: int) -> Case:
    x, weight, gate = (
        _normal(rng, n, heads, size),
        _normal(rng, size),
        _normal(rng, n, heads * size),
    )

    def compute(run: Operations, array: Convert) -> Any:
        return run.gated_norm(array(x), mx.array(weight), EPS, array(3 * gate))

    return Case("gated_norm", type, f"x {x.shape}", compute)


def _gate(rng: np.random.Generator, type: str, n: int, heads: int, size: int) -> Case:
    x, pairs = _normal(rng, n, heads, size), _normal(rng, n, heads, 2 * size)
    return Case("gate", type, f"x {x.shape}", lambda run, array: run.gate(array(x), array(pairs)))


def _passes(
    run: Operations, kind: Recurrent, rows: tuple[Sequence[int], ...]
) -> Iterator[RecurrentPlace]:
    """The places of passes one after another, for a model of one layer."""
    states = ModelStates([kind], run.allocate)
    texts = [states.begin() for _ in rows[0]]
    for counts in rows:
        batch = states.batch(list(zip(texts, counts, strict=True)), np.arange(sum(counts)))
        yield batch.layer(0)
        batch.advance()


def _with_state(out: Any, at: RecurrentPlace, name: str) -> Any:
    """The results of a pass, and what it wrote into slots, in one line."""
    written = np.array(at.storage.named[name])[at.slots.targets]
    return np.concatenate([np.array(out).reshape(-1), written.reshape(-1)])


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _rows(rows: tuple[Sequence[int], ...]) -> str:
    first, second = map(list, rows)
    return f"rows {second} after {first}"
