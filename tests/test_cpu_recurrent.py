"""Native recurrent operations, with each instruction set, against float64 and the reference backend."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import REFERENCE, Backend
from cpu_cases import by_reference, normal, random_weight
from slotted_rows import convolved, delta, held, place, sequences
from twins import VOCABULARY, Twins

from mlx_ferrum import blocks, ops
from mlx_ferrum.batch import Batch
from mlx_ferrum.state.kinds import KV, Recurrent
from mlx_ferrum.state.model import ModelStates

Inputs = tuple[Any, Any, Any]  # qkv (n, c), a and b (n, h)
RAGGED = [  # rows of each sequence: alone, below and past the end of a chunk, one by one
    [1],
    [2, 1, 33, 3, 1],
    [32, 4, 64, 31, 1, 65],
    [130],
]


def args(keys: int, heads: int, *, is_tiled: bool = False, least: float = 1.0) -> ops.Delta:
    """Decays whose half-lives are from `least` to 500 times as many rows, where a + dt is 1."""
    half_lives = least * 500 ** np.linspace(0, 1, heads)
    decay = -np.log(2) / half_lives / np.logaddexp(0, 1)
    return ops.Delta(mx.array(decay), mx.array(normal(heads, seed=3)), keys, 1e-6, is_tiled)


def inputs(kind: Recurrent, n: int, seed: int = 0) -> Inputs:
    """Of n rows."""
    a, b = (2 * normal(n, kind.heads, seed=seed + i) for i in (1, 2))
    return normal(n, kind.channels, seed=seed), a, b


def part(given: Inputs, rows: slice) -> Inputs:
    """Some of the rows."""
    qkv, a, b = given
    return qkv[rows], a[rows], b[rows]


def kind_of(keys: int, per_key: int, size: int) -> Recurrent:
    heads = keys * per_key
    return Recurrent((2 * keys + heads) * size, 3, heads, size)


def assert_near(found: np.ndarray, wanted: np.ndarray, relative: float = 2e-6) -> None:
    """Sums of float32: relative to the largest number, or to 1/2, as products of unit vectors may cancel."""
    assert found.shape == wanted.shape and np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= relative * max(np.abs(wanted).max(), 0.5)


@pytest.mark.parametrize("counts", RAGGED, ids=str)
@pytest.mark.parametrize("size", [7, 8, 16, 24, 64])
@pytest.mark.parametrize("keys, per_key, is_tiled", [(2, 1, False), (2, 3, False), (2, 2, True)])
def test_gated_delta(
    native: Backend, counts: list[int], size: int, keys: int, per_key: int, is_tiled: bool
) -> None:
    kind = kind_of(keys, per_key, size)
    assert_exact(kind, counts, args(keys, kind.heads, is_tiled=is_tiled))


@pytest.mark.parametrize("least", [1.0, 1e5])
@pytest.mark.parametrize("counts", [[1, 300], [1, 1, 2, 1, 1, 1, 1, 1]], ids=str)
def test_states_of_the_real_size(native: Backend, counts: list[int], least: float) -> None:
    """Decays of a row, and such that nothing is ever forgotten; also so many states that they are large."""
    assert_exact(kind_of(1, 2, 128), counts, args(1, 2, least=least))


def assert_exact(kind: Recurrent, counts: list[int], how: ops.Delta) -> None:
    """Results and states; nothing but the targets is written."""
    at, given = place(kind, counts), inputs(kind, sum(counts), seed=kind.size)
    _, before = held(at)
    found = ops.gated_delta(*given, at, how)
    _, after = held(at)
    for rows, source, target in sequences(at):
        state = before[source] if source >= 0 else np.zeros_like(before[0])
        wanted, state = delta(*part(given, rows), how, state)
        assert_near(found[rows], wanted)
        assert_near(after[target], state)
    others = np.setdiff1d(np.arange(len(before)), at.slots.targets)
    assert np.array_equal(before[others], after[others])


@pytest.mark.parametrize("is_tiled", [False, True])
def test_gated_delta_is_what_the_reference_says(native: Backend, is_tiled: bool) -> None:
    kind, counts = kind_of(2, 2, 16), [1, 40, 2]
    how, given = args(2, 4, is_tiled=is_tiled), inputs(kind, 43)
    at, weight = place(kind, counts), mx.array(normal(kind.channels, 4))
    found = ops.gated_delta(ops.short_conv(given[0], weight, at), *given[1:], at, how)
    with REFERENCE.in_use():
        other = place(kind, counts)
        x, a, b = map(mx.array, given)
        wanted = np.array(ops.gated_delta(ops.short_conv(x, weight, other), a, b, other, how))
        states = held(other)
    assert_near(found, wanted)
    for mine, reference in zip(held(at), states, strict=True):
        assert_near(mine, reference)


@pytest.mark.parametrize("size", [16, 40])
def test_pieces_of_a_text_make_the_same_state(native: Backend, size: int) -> None:
    kind, how = kind_of(1, 2, size), args(1, 2)
    given = inputs(kind, 140)
    whole = place(kind, [140])
    found = [ops.gated_delta(*given, whole, how)]
    at, start = place(kind, [1]), 0
    for count in (1, 33, 2, 64, 3, 37):
        piece = place(kind, [count])
        if start:
            piece.slots.sources[0] = at.slots.targets[0]
            piece.slots.targets[0] = 1 if at.slots.targets[0] != 1 else 0
        piece.storage = at.storage
        out = ops.gated_delta(*part(given, slice(start, start + count)), piece, how)
        assert_near(out, found[0][start : start + count])
        at, start = piece, start + count
    last = [held(x)[1][x.slots.targets[0]] for x in (at, whole)]
    assert_near(last[0], last[1])


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["qkv", "a", "b"])
def test_nan_stays_in_its_sequence_and_behind_its_row(
    native: Backend, which: int, count: int
) -> None:
    kind, row = kind_of(1, 1, 16), count - 2
    at, how, given = place(kind, [2, count, 5]), args(1, 1), inputs(kind, count + 7)
    clean = ops.gated_delta(*given, at, how).copy()
    given[which][2 + row] = np.nan
    found = ops.gated_delta(*given, at, how)
    assert np.isnan(found[2 + row : 2 + count]).all()
    others = np.delete(np.arange(count + 7), slice(2 + row, 2 + count))
    assert np.array_equal(found[others], clean[others])
    poisoned = [np.isnan(held(at)[1][target]).any() for _, _, target in sequences(at)]
    assert poisoned == [False, True, False]


@pytest.mark.parametrize("count", [2, 50])
def test_a_row_that_forgets_everything(native: Backend, count: int) -> None:
    """Its decay is zero; the rows behind it know nothing of those before."""
    kind, how = kind_of(1, 2, 16), args(1, 2)
    at, given = place(kind, [3, count, 3]), inputs(kind, count + 6)
    given[1][4] = [np.inf, 1e30]
    found = ops.gated_delta(*given, at, how)
    rows, _, target = list(sequences(at))[1]
    alone = delta(*part(given, slice(4, rows.stop)), how, np.zeros((2, 16, 16)))
    assert_near(found[4 : rows.stop], alone[0])
    assert_near(held(at)[1][target], alone[1])


@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [2, 5, 1, 40]], ids=str)
@pytest.mark.parametrize("channels", [1, 40, 300])
@pytest.mark.parametrize("kernel", [2, 4, 5])
def test_short_conv(native: Backend, counts: list[int], channels: int, kernel: int) -> None:
    """Also of fewer rows than the state has columns."""
    at = place(Recurrent(channels, kernel - 1, 1, 1), counts)
    x, weight = normal(sum(counts), channels), normal(channels, kernel)
    before, _ = held(at)
    found = ops.short_conv(x, mx.array(weight), at)
    after, _ = held(at)
    for rows, source, target in sequences(at):
        first = before[source] if source >= 0 else np.zeros_like(before[0])
        wanted, last = convolved(x[rows], weight, first)
        assert np.allclose(found[rows], wanted, rtol=2e-6, atol=2e-6)
        assert np.array_equal(after[target], last.astype(np.float32))
    others = np.setdiff1d(np.arange(len(before)), at.slots.targets)
    assert np.array_equal(before[others], after[others])


@pytest.mark.parametrize("field, slot", [("sources", -2), ("sources", 7), ("targets", -1)])
def test_slots_that_do_not_exist_are_refused(native: Backend, field: str, slot: int) -> None:
    kind = kind_of(1, 1, 16)
    at = place(kind, [1, 1, 4])
    getattr(at.slots, field)[1] = slot
    expected = f"{field[:-1]} slot {slot}, expected {-1 if field == 'sources' else 0} to 6"
    with pytest.raises(ValueError, match=re.escape(f"gated_delta: {expected}")):
        ops.gated_delta(*inputs(kind, 6), at, args(1, 1))
    with pytest.raises(ValueError, match=re.escape(f"short_conv: {expected}")):
        ops.short_conv(normal(6, kind.channels), mx.array(normal(kind.channels, 4)), at)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 33), (300, 4, 64), (2, 16, 128)], ids=str)
def test_gates(native: Backend, shape: tuple[int, ...]) -> None:
    n, heads, d = shape
    x, pairs, z = normal(*shape), 3 * normal(n, heads, 2 * d), 3 * normal(n, heads * d)
    wanted = by_reference(ops.gate, x, pairs)
    assert np.allclose(ops.gate(x, pairs), wanted, rtol=2e-6, atol=1e-7)
    given = x, mx.array(normal(d)), 1e-6, z
    wanted = by_reference(ops.gated_norm, *given)
    assert np.allclose(ops.gated_norm(*given), wanted, rtol=5e-6, atol=1e-6)


def test_gates_keep_nan_visible(native: Backend) -> None:
    x, pairs, z = normal(2, 1, 24), normal(2, 1, 48), normal(2, 24)
    pairs[0, 0, 29] = z[1, 7] = np.nan
    assert np.isnan(ops.gate(x, pairs)).nonzero()[2].tolist() == [5]
    normed = ops.gated_norm(x, mx.array(normal(24)), 1e-6, z)
    assert np.argwhere(np.isnan(normed)).tolist() == [[1, 7]]


def test_a_gate_behind_each_query_changes_nothing(native: Backend) -> None:
    """In `append`, with a norm and a rotation."""
    counts, found = [3, 1, 30], []
    q, k, v = normal(34, 6, 20), normal(34, 2, 20), normal(34, 2, 20)
    pairs = np.concatenate([q, normal(34, 6, 20, seed=1)], axis=-1)
    norms = mx.array(normal(20)), mx.array(normal(20, seed=1)), 1e-6
    for queries in (q, pairs):
        states = ModelStates([KV(2, 20, 20)], ops.allocate, block=4)
        texts = [(states.begin(), count) for count in counts]
        at = states.batch(texts, np.arange(34)).layer(0)
        turns = mx.array([1.0, 0.1])
        turned = ops.append(queries, k, v, at, turns, interleaved=False, norms=norms)
        found.append([turned, *at.storage.arrays])
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


class TwoLayers:
    """Two recurrent layers, in place of a model."""

    def __init__(self) -> None:
        self.kind = kind_of(2, 2, 16)
        sizes = self.kind.channels, 64, 4, 4, 128
        self.keeps, self.how = [self.kind, self.kind], args(2, 4)
        self.embed = random_weight(blocks.F32, VOCABULARY, 32, seed=0)
        self.projections = [
            random_weight(blocks.F16, rows, 32, seed=i) for i, rows in enumerate(sizes)
        ]
        self.out = random_weight(blocks.Q8_0, 32, 64, seed=9)
        self.conv, self.weight = mx.array(normal(self.kind.channels, 4)), mx.array(normal(16))
        self.body = self

    def __call__(self, batch: Batch) -> Any:
        x = ops.rows(self.embed, batch.tokens)
        for i in range(2):
            qkv, z, b, a, pairs = ops.matmuls(x, self.projections)
            qkv = ops.short_conv(qkv, self.conv, batch.layer(i))
            out = ops.gated_delta(qkv, a, b, batch.layer(i), self.how)
            out = ops.gate(out, pairs.reshape(len(x), 4, 32))
            x = ops.matmul(ops.gated_norm(out, self.weight, 1e-6, z), self.out)
        return x


def test_steps_are_repeated_to_the_bit(native: Backend) -> None:
    """Other slots each time, sequences that come, fork, go back and end."""
    model = TwoLayers()
    twins = Twins(model, model.body)
    twins.begin(3, 0, 17, 40)
    for which in ([0, 1, 2], [2, 0, 1], [3, 2], [1], [0, 1, 3], [2, 3]):
        for _ in range(12):
            twins(which)
    twins.rewind(1, twins.texts[1][0].position - 1)
    twins.free(2)
    for _ in range(12):
        twins([0, 1, 3])
    twins.assert_same_storage()
    grown = sum(group.grown for group in twins.sides[0].groups)
    assert twins.calls <= 2 * (3 + grown) < 30, "most of 84 steps are repeated"
