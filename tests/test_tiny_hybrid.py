"""What the hybrid model of the package has learnt."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from divergence import log_softmax

import mlx_ferrum
from mlx_ferrum import catalog

GOLDEN = Path(__file__).parent / "golden"


def test_it_is_small() -> None:
    assert catalog.resolve("tiny-hybrid").stat().st_size < 5e6


@pytest.mark.parametrize("piece", [512, 50])
def test_held_out_loss(reference: Backend, piece: int) -> None:
    """Of each token of a chapter, which is longer than a chunk of a delta net, whole and in pieces."""
    model, tokenizer = mlx_ferrum.load("tiny-hybrid")
    golden = json.loads((GOLDEN / "held_out.json").read_text("utf-8"))["tiny-hybrid"]
    tokens = tokenizer.encode((GOLDEN / "held_out.txt").read_text("ascii"))
    assert tokens == golden["tokens"] and len(tokens) > 256
    cache, inputs = model.make_cache(), mx.array(tokens[:-1])[None]
    logits = [
        np.array(model(inputs[:, at : at + piece], cache)[0])
        for at in range(0, inputs.shape[1], piece)
    ]
    log_probs = log_softmax(np.concatenate(logits))
    nats = -np.take_along_axis(log_probs, np.array(tokens[1:])[:, None], -1)[:, 0]
    np.testing.assert_allclose(nats, golden["nats"], atol=1e-4)
    assert nats.mean() < 4.0
