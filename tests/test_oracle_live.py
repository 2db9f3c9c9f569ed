"""Logits against float32 transformers, on fresh random files and at every position of a text.

Runs where torch and transformers are installed; test_logits.py holds the same ground without them.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from divergence import MAX_KL, kl, log_softmax
from routing import Routed

import mlx_ferrum

pytest.importorskip("torch")
pytest.importorskip("transformers")
oracle: Any = pytest.importorskip("oracle")

TEXT = "for i in range(3):\n    print(f'{i}²')  # naïve\n\nThe old lighthouse keeper smiled. 灯台は古い。"


def far(path: Path, model: Any, tokens: list[int]) -> np.ndarray:
    """KL(oracle || ours) at each position of a text, up to the first token that gets other experts."""
    exact, routed = oracle.load(path), Routed(model)
    expected = log_softmax(oracle.logits(exact, tokens))
    found = log_softmax(np.array(model(mx.array([tokens]))[0]))
    if model.args.experts is not None:
        other = routed.differs(oracle.router_logits(exact, tokens)).any(0)
        expected, found = (x[np.cumsum(other) == 0] for x in (expected, found))
    return kl(expected, found)


@pytest.mark.parametrize("name", random_models.CASES)
def test_random_model(name: str, tmp_path: Path) -> None:
    seed = secrets.randbelow(2**32)
    path = random_models.write_case(tmp_path / "model.gguf", name, seed)
    model, _ = mlx_ferrum.load(path)
    tokens = np.random.default_rng(seed).integers(0, random_models.Sizes.vocab, 40).tolist()
    worst = far(path, model, tokens).max(initial=0)
    assert worst < MAX_KL, f"KL {worst} on write_case(path, {name!r}, {seed})"


@pytest.mark.parametrize("fixture", ["smollm2", "gemma3"])
def test_real_model(fixture: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = request.getfixturevalue(fixture)
    path = request.getfixturevalue(f"{fixture}_path")
    assert far(path, model, tokenizer.encode(TEXT)).max() < MAX_KL
