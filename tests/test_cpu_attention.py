"""Native attention with each instruction set: both ways, far apart scores, and what is no number."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from cpu_cases import by_reference, normal
from pages import Layer, attention

from mlx_ferrum import ops
from mlx_ferrum.state.kinds import KV


@pytest.mark.parametrize("d, dv", [(32, 32), (33, 20), (8, 129)])
@pytest.mark.parametrize("lengths", [[1], [7, 15, 16], [64, 63, 200]], ids=str)
def test_attend_both_ways(native: Backend, lengths: list[int], d: int, dv: int) -> None:
    q, k = (normal(len(lengths), 4, max(lengths), d, seed=i) for i in (1, 2))
    v = normal(len(lengths), 4, max(lengths), dv)
    wanted = by_reference(ops.attend_both_ways, q, k, v, lengths, scale=2.5 * d**-0.5)
    found = ops.attend_both_ways(q, k, v, lengths, scale=2.5 * d**-0.5)
    assert found.shape == v.shape and np.isfinite(np.asarray(found)).all()
    for i, n in enumerate(lengths):
        assert np.allclose(found[i, :, :n], wanted[i, :, :n], atol=2e-5)


def layer_of(native: Backend, held: int) -> Layer:
    """Two query heads that share keys and values, of a sequence that holds so many positions."""
    layer = Layer(native, KV(1, 16, 16), 2)
    layer.begin(held)
    return layer


@pytest.mark.parametrize("new", [1, 9])
def test_far_apart_scores(native: Backend, new: int) -> None:
    """The weight of all keys but one vanishes; none overflows."""
    layer = layer_of(native, 290)
    rows = layer.append({0: new})
    # scores of 10,000 are exact to 1e-3
    found, wanted = (f(rows, scale=1600.0) for f in (layer.attended, layer.wanted))
    assert np.isfinite(found).all() and np.allclose(found, wanted, atol=2e-2)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_queries_that_are_no_numbers_stay_visible(native: Backend, poison: float) -> None:
    """In their own head of their own row, and in no other."""
    layer = layer_of(native, 72)
    rows = layer.append({0: 8})
    rows.turned[3, 1, 2] = poison
    found = layer.attended(rows, scale=0.3)
    assert not np.isfinite(found[3, 1]).any()
    found[3, 1], wanted = 0, layer.wanted(rows, scale=0.3)
    wanted[3, 1] = 0
    assert np.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("new", [1, 8, 24])
@pytest.mark.parametrize("which", ["keys", "values"])
def test_nan_stays_visible(native: Backend, which: str, new: int) -> None:
    """In every row that sees the position."""
    layer = layer_of(native, 72)
    rows = layer.append({0: new})
    at, seen = rows.at, 72 + new - 1
    stored = getattr(at.storage, which)
    stored[at.paging.table[0, seen // 32], 0, seen % 32, 2] = np.nan  # of the last row
    found = layer.attended(rows, scale=0.3)
    assert np.isnan(found[-1]).any(-1).all()
    if which == "keys":  # a key that is not seen has no weight; a value gets the weight 0
        assert np.allclose(found[:-1], layer.wanted(rows, scale=0.3)[:-1], atol=1e-5)


def test_activations_need_not_be_contiguous(native: Backend) -> None:
    """Queries, keys and values may be slices of one product."""
    layer = layer_of(native, 20)
    product: Any = normal(3, 4, 16)
    batch = layer.states.batch([(layer.texts[0], 3)], np.arange(3))
    at = batch.layer(0)
    q, k, v = product[:, :2], product[:, 2:3], product[:, 3:]
    turned = ops.append(q, k, v, at, mx.zeros(1), interleaved=False)
    assert np.array_equal(turned, q)
    halves = [x.astype(np.float16).astype(np.float64) for x in (k, v)]
    past = (np.concatenate(pair) for pair in zip(layer.past[0], halves, strict=True))
    wanted = attention(q, *past, scale=0.3)
    assert np.allclose(ops.attend(turned[:, :, :], at, scale=0.3), wanted, atol=1e-5)


def test_blocks_outside_the_pool_are_refused(native: Backend) -> None:
    """A slot, a table entry or a length that does not fit the storage never becomes an address."""
    layer = layer_of(native, 20)
    batch = layer.states.batch([(layer.texts[0], 3)], np.arange(3))
    at = batch.layer(0)
    q, k, v = normal(3, 2, 16), normal(3, 1, 16), normal(3, 1, 16)
    paging, blocks, size = at.paging, at.storage.blocks, at.storage.size
    for array, wrong, said in (
        (paging.slots, blocks * size, f"slot {blocks * size}, expected 0 to {blocks * size - 1}"),
        (paging.slots, -1, "slot -1, expected 0"),
        (paging.table, blocks, f"block {blocks}, expected 0 to {blocks - 1}"),
        (paging.table, -1, "block -1, expected 0"),
        (batch.lengths, 10**6, "1000000 positions, expected at most"),
    ):
        kept = array.copy()
        array.reshape(-1)[0] = wrong
        with pytest.raises(ValueError, match=said):
            turned = ops.append(q, k, v, at, mx.zeros(1), interleaved=False)
            ops.attend(turned, at, scale=1.0)
        array[:] = kept
    ops.attend(ops.append(q, k, v, at, mx.zeros(1), interleaved=False), at, scale=1.0)
