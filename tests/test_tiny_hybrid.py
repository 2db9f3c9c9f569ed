"""The hybrid model that ships inside the package: what it says on every backend, and what it has learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from divergence import coarsen, kl, log_softmax

import mlx_ferrum
from mlx_ferrum import catalog, gguf
from mlx_ferrum.catalog import EMBEDDED, command

GOLDEN = Path(__file__).parent / "golden"
CLOSE = {"reference": 1e-6, "cpu": 5e-3, "metal": 1e-3}  # KL: activations are rounded


@pytest.fixture(scope="module")
def tiny_hybrid() -> tuple[Any, Any]:
    return mlx_ferrum.load("tiny-hybrid")


def test_it_is_a_file_of_the_package() -> None:
    path = catalog.resolve("tiny-hybrid")
    metadata = gguf.read(path).metadata
    assert metadata["general.architecture"] == "qwen35"
    assert path.stat().st_size < 5e6
    (licence,) = (model.licence for model in EMBEDDED if model.name == "tiny-hybrid")
    assert metadata["general.license"] in licence


def test_the_catalog_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tiny-hybrid" in line)
    assert line.split()[1:5] == ["2", "MB", "built", "in"]


def test_without_a_prompt_it_begins_a_text(tiny_hybrid: tuple[Any, Any]) -> None:
    _, tokenizer = tiny_hybrid
    sample = catalog.sample("tiny-hybrid")
    assert sample is not None and tokenizer.encode(sample.prompt) == [tokenizer.bos_token_id]


def test_greedy_text(fast_backend: Backend, tiny_hybrid: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_hybrid
    golden = json.loads((GOLDEN / "greedy.json").read_text("utf-8"))["tiny-hybrid"]
    assert tokenizer.encode(golden["prompt"]) == golden["prompt_tokens"]
    found = mlx_ferrum.stream_generate(
        model, tokenizer, golden["prompt_tokens"], max_tokens=len(golden["tokens"])
    )
    assert [response.token for response in found] == golden["tokens"]


def test_logits(backend: Backend, tiny_hybrid: tuple[Any, Any]) -> None:
    goldens = np.load(GOLDEN / "real_logits.npz")
    tokens, positions, ids, expected = (
        goldens[f"tiny-hybrid.{part}"] for part in ("tokens", "positions", "ids", "log_probs")
    )
    found = log_softmax(np.array(tiny_hybrid[0](mx.array(tokens)[None])[0]))[positions]
    assert kl(expected, coarsen(found, ids)).max() < CLOSE[backend.name]


@pytest.mark.parametrize("piece", [512, 50])
def test_held_out_loss(reference: Backend, tiny_hybrid: tuple[Any, Any], piece: int) -> None:
    """Of each token of a chapter, which is longer than a chunk of a delta net, whole and in pieces."""
    model, tokenizer = tiny_hybrid
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
