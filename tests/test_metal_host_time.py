"""What a step of the metal backend costs the host, as far as no clock is needed to tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import REFERENCE
from launches import Zeros
from msl.signature import signature

import mlx_ferrum
from mlx_ferrum import launch, ops
from mlx_ferrum.models.base import LanguageModel

# Of a model with two types of blocks: kernels for prompts of any length; 8 sizes of small batches are most of them.
MOST_KERNELS = {"qwen3": 60, "qwen3moe": 90}
LENGTHS = range(1, 601)
MOST_TEXT = 12_000


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
