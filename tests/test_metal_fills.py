"""Each kernel of a whole model twice, with other bytes wherever nothing was written: the same bits."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import random_models
from backends import METAL
from metal_call import needs_host
from msl.fills import differences

import mlx_ferrum

pytestmark = needs_host
SEED = 2026
PARTS = (11, 3, 1)  # a prompt by tiles, rows, and a step


def test_results_do_not_depend_on_memory_that_nothing_wrote(tmp_path: Path) -> None:
    """Of a model with experts and norms of heads, whose plain kernels another test has compiled."""
    path = random_models.write_case(tmp_path / "m.gguf", "qwen3moe", SEED)
    model, _ = mlx_ferrum.load(path)
    tokens = np.random.default_rng(SEED).integers(0, model.args.vocab_size, sum(PARTS))

    def run() -> None:
        cache = model.make_cache()
        for part in np.split(tokens, np.cumsum(PARTS)[:-1]):
            mx.eval(model(mx.array(part[None]), cache))

    with METAL.in_use():
        assert differences(run) == []
