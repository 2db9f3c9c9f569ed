"""`experts.routes`: what routers say of each token; and the heat map as a figure."""

from __future__ import annotations

import math
import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from matplotlib.figure import Figure
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum.experts import Choices, Routes, heat_map, observe, routes

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Layer 1 is dense; a token gets 2 of 6 experts, with the softmax of the chosen as weights."""
    folder = tmp_path_factory.mktemp("routes")
    sizes = Sizes(layers=3, experts=6, used=2, dense_layers=(1,))
    path = random_models.write(folder / "m.gguf", "qwen3moe", 11, sizes=sizes, types=("Q8_0",))
    return mlx_ferrum.load(path)[0]


def test_ids_and_weights_are_those_of_the_logits(fast_backend: Any, model: Any) -> None:
    found = routes(model, TOKENS)
    assert [layer.layer for layer in found] == [0, 2]
    for layer in found:
        assert layer.logits.shape == (8, 6) and layer.ids.shape == layer.weights.shape == (8, 2)
        assert layer.logits.dtype == layer.weights.dtype == np.float32
        assert np.array_equal(layer.ids, np.argsort(-layer.logits, axis=-1)[:, :2])
        chosen = np.take_along_axis(layer.logits, layer.ids.astype(int), axis=-1).astype(np.float64)
        shares = np.exp(chosen) / np.exp(chosen).sum(axis=-1, keepdims=True)
        assert np.abs(layer.weights - shares).max() < 1e-5


def test_counts_are_those_of_observe(model: Any) -> None:
    found = routes(model, TOKENS)
    with observe(model) as layers:
        model(mx.array([TOKENS]))
    for layer, counted in zip(found, layers, strict=True):
        assert np.bincount(layer.ids.ravel(), minlength=6).tolist() == counted.counts.tolist()


def test_nobody_observes_afterwards(reference: Any, model: Any) -> None:
    with pytest.raises(ValueError, match="row ids lie between"):
        routes(model, [10**6])
    assert all(model.body.layers[i].mlp.observer is None for i in (0, 2))


@pytest.mark.parametrize(
    ("logits", "bits"),
    [
        ([0, 0, 0, 0], 2),
        ([100, 100, 0, -100], 1),
        ([1e4, 0, 0, -1e4], 0),
        ([math.log(0.5), math.log(0.25), math.log(0.125), math.log(0.125)], 1.75),
        ([0, 0, -math.inf, -math.inf], 1),
    ],
)
def test_entropy(logits: list[float], bits: float) -> None:
    found = Routes(0, np.array([logits], np.float32), np.zeros((1, 2)), np.zeros((1, 2)))
    assert math.isclose(found.entropy[0], bits, abs_tol=1e-6)
    assert math.isclose(found.probabilities.sum(), 1, abs_tol=1e-6)
    assert repr(found) == "Routes(layer 0, 1 tokens, 2 of 4 experts)"


def test_a_dense_model_has_no_routes(smollm2: Any) -> None:
    with pytest.raises(ValueError, match="the model has no experts: its architecture is llama"):
        routes(smollm2[0], TOKENS)
    with pytest.raises(ValueError, match="no experts"), observe(smollm2[0]):
        pass


@pytest.mark.parametrize("tokens", [[], [[1, 2]], [1.5], mx.array([[1, 2]])])
def test_tokens_that_are_no_text_are_refused_as_they_were_given(tokens: Any) -> None:
    model, _ = mlx_ferrum.load("tiny-moe")
    shape = re.escape(str(np.array(tokens).shape))
    with pytest.raises(ValueError, match=rf"tokens are \w+ {shape}, expected integers \(length,\)"):
        routes(model, tokens)


def test_the_heat_map_is_a_figure() -> None:
    layers = [Choices(i, np.array([5, 0, 3, 8]), tokens=8) for i in (0, 2)]
    figure = heat_map(layers, 2, "two layers")
    assert isinstance(figure, Figure)
    image = figure.axes[0].images[0].get_array()
    assert image is not None
    assert np.ma.filled(image, 0).tolist() == [[0.625, 0, 0.375, 1.0]] * 2
    assert figure.axes[0].get_title() == "two layers"
    with pytest.raises(ValueError, match="layers: none found"):
        heat_map([], 2)
