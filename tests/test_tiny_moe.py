"""The model that ships inside the package: there without a network, and what it says on every backend."""

from __future__ import annotations

import json
from importlib import resources
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
from mlx_ferrum.experts.choices import observe

GOLDEN = Path(__file__).parent / "golden"
RUTH = (  # of what was held out
    "And Ruth said, Intreat me not to leave thee, or to return from following after thee: for whither thou goest, I "
    "will go; and where thou lodgest, I will lodge: thy people shall be my people, and thy God my God:"
)
CLOSE = {
    "reference": 1e-6,
    "cpu": 5e-3,
    "metal": 1e-3,
}  # KL: activations are rounded, and may choose others


@pytest.fixture(scope="module")
def tiny_moe() -> tuple[Any, Any]:
    return mlx_ferrum.load("tiny-moe")


def test_it_is_a_file_of_the_package_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch(*args: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(catalog, "fetch", fetch)
    path = catalog.resolve("tiny-moe")
    assert path == Path(str(resources.files("mlx_ferrum") / "catalog" / "tiny-moe.gguf"))
    metadata = gguf.read(path).metadata
    assert metadata["general.architecture"] == "qwen3moe"
    assert metadata["general.license"] in EMBEDDED[0].licence


def test_the_catalog_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tiny-moe" in line)
    assert line.split()[1:5] == ["5", "MB", "built", "in"]


def test_without_a_prompt_it_begins_a_text(tiny_moe: tuple[Any, Any]) -> None:
    _, tokenizer = tiny_moe
    sample = catalog.sample("tiny-moe")
    assert sample is not None and tokenizer.encode(sample.prompt) == [tokenizer.bos_token_id]
    assert catalog.sample("smollm2-135m") is None


def test_greedy_text(backend: Backend, tiny_moe: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_moe
    golden = json.loads((GOLDEN / "greedy.json").read_text("utf-8"))["tiny-moe"]
    assert tokenizer.encode(golden["prompt"]) == golden["prompt_tokens"]
    found = mlx_ferrum.stream_generate(
        model, tokenizer, golden["prompt_tokens"], max_tokens=len(golden["tokens"])
    )
    assert [response.token for response in found] == golden["tokens"]


def test_logits(backend: Backend, tiny_moe: tuple[Any, Any]) -> None:
    goldens = np.load(GOLDEN / "real_logits.npz")
    tokens, positions, ids, expected = (
        goldens[f"tiny-moe.{part}"] for part in ("tokens", "positions", "ids", "log_probs")
    )
    found = log_softmax(np.array(tiny_moe[0](mx.array(tokens)[None])[0]))[positions]
    assert kl(expected, coarsen(found, ids)).max() < CLOSE[backend.name]


def test_it_has_learnt(reference: Backend, tiny_moe: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_moe
    tokens = tokenizer.encode(RUTH)
    log_probs = log_softmax(np.array(model(mx.array(tokens[:-1])[None])[0]))
    bits = -np.take_along_axis(log_probs, np.array(tokens[1:])[:, None], -1).sum() / np.log(2)
    assert bits / len(RUTH) < 1.6  # a byte; 1.4 over all that was held out


def test_every_expert_is_chosen(reference: Backend, tiny_moe: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_moe
    with observe(model) as layers:
        mx.eval(model(mx.array(tokenizer.encode(RUTH))[None]))
    assert len(layers) == 4
    for layer in layers:
        assert layer.tokens > 40 and layer.effective > 5  # of 8
