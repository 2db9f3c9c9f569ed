"""Experts that are read from disk before they are chosen: what is predicted, and what comes of wrong predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import CPU, REFERENCE, Backend
from streamed_models import logits, streamed

import mlx_ferrum
from mlx_ferrum.nn import RMSNorm
from mlx_ferrum.streamed import Streams

TEXT = Path(__file__).parent.parent / "README.md"
SOME = 4  # experts a layer that fit in memory; of 8, of which a token uses 2


@pytest.fixture(scope="module")
def loaded() -> Any:
    with CPU.in_use():
        return mlx_ferrum.load("tiny-moe")


@pytest.fixture(scope="module")
def ids(loaded: Any) -> np.ndarray:
    """Of real text, for which the model was trained."""
    return np.array(loaded[1].encode(TEXT.read_text("utf-8")[2000:4000], add_special=False))


def other_norms(model: Any, weight: mx.array) -> None:
    """Predict by routers after other norms."""
    streams = model.streams
    norms = [RMSNorm(weight, norm.eps) for norm in streams._norms]
    Streams(streams.layers, streams._experts, norms)


def test_most_choices_are_predicted(cpu: Backend, loaded: Any, ids: np.ndarray) -> None:
    model = streamed(loaded[0], SOME)
    np.testing.assert_array_equal(logits(model, ids[:300], 280), logits(loaded[0], ids[:300], 280))
    first, second, *others = [layer.first.counts() for layer in model.streams.layers]
    assert first.judged == first.ahead == 0  # there is no layer before it
    assert 0 < second.judged < 450  # its predictions are poor: the first layer changes much
    for counts in others:
        assert counts.judged >= 2 * 270
        assert counts.foretold / counts.judged > 0.6  # by chance 0.25
        assert 0 < counts.useful <= counts.ahead
    for layer in model.streams.layers[1:]:
        down = layer.second.counts()
        assert down.judged == 0  # it follows gate and up
        assert 0 < down.useful <= down.ahead


def test_nothing_is_predicted_where_that_is_turned_off(
    cpu: Backend, loaded: Any, ids: np.ndarray
) -> None:
    model = streamed(loaded[0], SOME)
    model.streams.predict(False)
    np.testing.assert_array_equal(logits(model, ids[:60], 50), logits(loaded[0], ids[:60], 50))
    assert not any(model.streams.counts()[4:])


@pytest.mark.parametrize("each", [2, 100])
def test_nothing_is_predicted_without_room_or_need(
    cpu: Backend, loaded: Any, ids: np.ndarray, each: float
) -> None:
    model = streamed(loaded[0], each)
    logits(model, ids[:40], 30)
    assert not any(model.streams.counts()[4:])


def test_another_backend_maps_the_file(cpu: Backend, loaded: Any, ids: np.ndarray) -> None:
    model = streamed(loaded[0], SOME)
    with REFERENCE.in_use():
        found, wanted = (logits(each, ids[:9], 2) for each in (model, loaded[0]))
    np.testing.assert_array_equal(found, wanted)
    assert not any(model.streams.counts())


def test_wrong_predictions_change_nothing_and_end(
    cpu: Backend, loaded: Any, ids: np.ndarray
) -> None:
    model = streamed(loaded[0], SOME)
    other_norms(model, mx.zeros(loaded[0].args.hidden_size))  # the first two experts, always
    few = ids[:420]
    np.testing.assert_array_equal(logits(model, few, 400), logits(loaded[0], few, 400))
    wrong = [layer.first.counts() for layer in model.streams.layers[1:]]
    assert all(0 < counts.ahead < 100 for counts in wrong)
    assert all(counts.judged < 2 * 250 for counts in wrong)  # few are, once that does not pay
    model.streams.predict(True)
    logits(model, ids, 1100)
    right = [layer.first.counts() for layer in model.streams.layers[1:]]
    assert any(b.ahead - a.ahead > 20 for a, b in zip(wrong, right, strict=True))
