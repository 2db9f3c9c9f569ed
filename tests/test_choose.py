"""The likeliest token of each row, the range of its logits, and their soft bound, on every backend."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend

from mlx_ferrum import ops

VOCABULARIES = (1, 2, 7, 16, 300, 4095, 4096, 4097, 9001)  # around vectors, and runs of 4,096


def chosen(backend: Backend, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ids, ranges = ops.choose(backend.array(logits))
    return np.array(ids), np.array(ranges)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_largest_logit_is_chosen(backend: Backend, n: int, vocabulary: int) -> None:
    logits = np.random.default_rng(n).normal(size=(n, vocabulary)).astype(np.float32) - 3
    ids, ranges = chosen(backend, logits)
    assert ids.shape == (n,) and ids.dtype == np.int32
    assert np.array_equal(ids, logits.argmax(-1))
    assert np.array_equal(ranges, np.stack([logits.min(-1), logits.max(-1)], -1))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_of_equal_logits_the_first_is_chosen(backend: Backend, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = rng.integers(-2, 3, (5, vocabulary)).astype(np.float32)
    logits[1:3] = [[-0.5], [-np.inf]]  # all equal
    logits[3] = np.where(
        rng.random(vocabulary) < 0.5, -0.0, 0.0
    )  # zeros are equal whatever their sign
    ids, ranges = chosen(backend, logits)
    assert np.array_equal(ids, logits.argmax(-1))
    assert np.array_equal(ranges, np.stack([logits.min(-1), logits.max(-1)], -1))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_infinities_are_the_ends_of_the_range(backend: Backend, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(size=(3, vocabulary)).astype(np.float32)
    where = rng.integers(0, vocabulary, 3)
    logits[[0, 1, 2], where] = [np.inf, -np.inf, np.inf]
    logits[2, rng.integers(0, vocabulary)] = -np.inf
    ids, ranges = chosen(backend, logits)
    assert np.array_equal(ids, logits.argmax(-1))
    assert np.array_equal(ranges, np.stack([logits.min(-1), logits.max(-1)], -1))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_nan_makes_the_range_nan(backend: Backend, vocabulary: int) -> None:
    """Wherever it is, and in no other row; the id is a token whatever happens."""
    rng = np.random.default_rng(vocabulary)
    for at in {0, vocabulary // 2, vocabulary - 1, int(rng.integers(0, vocabulary))}:
        logits = rng.normal(size=(4, vocabulary)).astype(np.float32)
        logits[1, at] = np.nan
        logits[2] = np.nan
        logits[3, at] = np.nan
        logits[3, 0] = np.inf if at else np.nan
        ids, ranges = chosen(backend, logits)
        assert np.isnan(ranges[1:]).all()
        assert np.array_equal(ranges[0], [logits[0].min(), logits[0].max()])
        assert ids[0] == logits[0].argmax() and ((ids >= 0) & (ids < vocabulary)).all()


@pytest.mark.parametrize("shape", [(1,), (1, 7), (3, 300), (2, 5, 33), (9, 5000)], ids=str)
@pytest.mark.parametrize("cap", [0.5, 30.0, 50.0])
def test_softcap(backend: Backend, cap: float, shape: tuple[int, ...]) -> None:
    """From numbers that it leaves as they are to those that reach the bound."""
    rng = np.random.default_rng(shape)
    x: Any = (rng.normal(size=shape) * 10.0 ** rng.integers(-4, 5, shape)).astype(np.float32)
    found = np.array(ops.to_mlx(ops.softcap(backend.array(x), cap)))
    wanted = cap * np.tanh(x.astype(np.float64) / cap)
    assert found.shape == shape
    # what float32 resolves of the bound: native code has tanh from 1 - exp
    assert (np.abs(found - wanted) <= 4e-7 * cap).all()
    assert (np.abs(found) <= cap).all()


def test_softcap_keeps_infinity_and_nan(backend: Backend) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0, -0.0, 3], np.float32)
    found = np.array(ops.to_mlx(ops.softcap(backend.array(x), 5.0)))
    assert found[:2].tolist() == [5, -5] and np.isnan(found[2])
    assert found[3:5].tolist() == [0, 0]
    assert found[5] == pytest.approx(5 * np.tanh(0.6), rel=1e-6)


def test_logits_that_are_views(backend: Backend) -> None:
    """As every second row, or logits on their side, which no backend has in one piece."""
    x = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    for view in (lambda y: y[::2], lambda y: y.swapaxes(0, 1)):
        given = view(backend.array(x))
        ids, ranges = ops.choose(given)
        assert np.array_equal(np.array(ids), view(x).argmax(-1))
        assert np.array_equal(np.array(ranges)[:, 1], view(x).max(-1))
        capped = np.array(ops.to_mlx(ops.softcap(given, 2.0)))
        assert np.allclose(capped, 2 * np.tanh(view(x) / 2), atol=1e-6)


def test_mlx_arrays_of_the_reference_are_lazy(reference: Backend) -> None:
    ids, ranges = ops.choose(mx.zeros((2, 5)))
    assert isinstance(ids, mx.array) and isinstance(ranges, mx.array)
