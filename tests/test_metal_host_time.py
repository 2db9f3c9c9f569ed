"""What a step of the metal backend costs the host, as far as no clock is needed to tell."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import REFERENCE
from launches import Zeros
from msl.signature import signature

import mlx_ferrum
from mlx_ferrum import launch, ops
from mlx_ferrum.backends import metal
from mlx_ferrum.engine.choosing import forward
from mlx_ferrum.models.base import LanguageModel

# For prompts of any length, of a model with two types of blocks: 1 to 8 rows have kernels of their own.
MOST_KERNELS = {"qwen3": 100, "qwen3moe": 100}
LENGTHS = [*range(1, 70), *range(70, 601, 9)]  # tiles and classes of rows change below 70
# Bytes of header and body.
MOST_TEXT, MEAN_TEXT = 14_200, 11_500
# Calls of functions that a layer makes, Python's and others; keys and values apart.
MOST_CALLS = {"qwen3": 140, "qwen3moe": 180}


class Seen(Zeros):
    """Notes the launches."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[tuple[launch.Kernel, launch.Launch]] = []

    def __call__(self, kernel: launch.Kernel, call: launch.Launch) -> list[mx.array]:
        self.launched.append((kernel, call))
        return super().__call__(kernel, call)

    @property
    def kernels(self) -> set[str]:
        """By the name under which MLX compiles them."""
        return {signature(*launched).name for launched in self.launched}


@pytest.fixture
def seen() -> Iterator[Seen]:
    """The runner, in use with the metal backend."""
    runner = Seen()
    with REFERENCE.in_use(), launch.use_runner(runner):
        ops.use_backend("metal")
        yield runner


@pytest.fixture(params=MOST_KERNELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    """Small, dense and of experts; its numbers do not matter."""
    case = random_models.CASES[request.param] | {"types": ("Q4_K", "Q6_K")}
    path = random_models.write(tmp_path / "m.gguf", seed=1, **case)
    with REFERENCE.in_use():
        model, _ = mlx_ferrum.load(path)
    return model


def test_prompts_of_all_lengths_share_a_few_kernels(model: LanguageModel, seen: Seen) -> None:
    for length in LENGTHS:
        batch = model.make_cache().batch(np.zeros((1, length), np.int64))
        model.scores(batch.last(model.body(batch)))
    assert len(seen.kernels) <= MOST_KERNELS[model.args.architecture], sorted(seen.kernels)


@pytest.fixture
def step(model: LanguageModel, seen: Seen) -> Iterator[Callable[[], Any]]:
    """A decode step that is not the first; what keys and values take is another matter."""
    cache, run = model.make_cache(), forward(model)
    tokens = mx.zeros((1, 1), mx.int32)

    def step() -> Any:
        return run(cache.batch(tokens))

    append = mock.patch.object(metal, "append", lambda q, *_, **__: q)
    attend = mock.patch.object(metal, "attend", lambda q, *_, **__: q)
    with append, attend:
        step()
        seen.launched.clear()
        yield step


def test_a_launch_has_little_text(step: Callable[[], Any], seen: Seen) -> None:
    step()
    texts = [len(kernel.bare_text) + len(kernel.source) for kernel, _ in seen.launched]
    assert max(texts) <= MOST_TEXT
    assert sum(texts) / len(texts) <= MEAN_TEXT


def test_a_step_makes_no_constants(step: Callable[[], Any]) -> None:
    with making_arrays() as made:
        step()
    assert made == []


def test_a_layer_takes_few_calls(model: LanguageModel, step: Callable[[], Any], seen: Seen) -> None:
    whole = calls(step)
    layers = model.body.layers
    model.body.layers = layers[:-1]
    fewer = calls(step)
    most = MOST_CALLS[model.args.architecture]
    assert whole.total() - fewer.total() <= most, (whole - fewer).most_common()


def calls(run: Callable[[], Any]) -> Counter[str]:
    """How often each function is called in a run."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, what: Any) -> None:
        if event in ("call", "c_call"):
            found[frame.f_code.co_name if event == "call" else repr(what)] += 1

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


@contextmanager
def making_arrays() -> Iterator[list[tuple[Any, ...]]]:
    """Within, the arguments of mx.array are noted."""
    made: list[tuple[Any, ...]] = []
    array = mx.array

    class Meta(type):
        def __instancecheck__(cls, x: Any) -> bool:
            return isinstance(x, array)

        def __call__(cls, *args: Any) -> mx.array:
            made.append(args)
            return array(*args)

    with mock.patch("mlx.core.array", Meta("array", (), {})):
        yield made
