"""The models that ship inside the package: there without a network, and what they say on every backend."""

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

GOLDEN = Path(__file__).parent / "golden"
NAMES = [model.name for model in EMBEDDED]
MEGABYTES = {"tiny-moe": "5", "tiny-hybrid": "2"}
ARCHITECTURES = {"tiny-moe": "qwen3moe", "tiny-hybrid": "qwen35"}
# KL: activations are rounded, and may choose other experts
CLOSE = {"reference": 1e-6, "cpu": 5e-3, "metal": 1e-3}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(name: str) -> tuple[Any, Any]:
    return mlx_ferrum.load(name)


def test_it_is_a_file_of_the_package_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fetch(*args: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(catalog, "fetch", fetch)
    path = catalog.resolve(name)
    assert path == Path(str(resources.files("mlx_ferrum") / "catalog" / f"{name}.gguf"))
    metadata = gguf.read(path).metadata
    assert metadata["general.architecture"] == ARCHITECTURES[name]
    (licence,) = (model.licence for model in EMBEDDED if model.name == name)
    assert metadata["general.license"] in licence


def test_the_catalog_lists_it(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert command.main([]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if name in line)
    assert line.split()[1:5] == [MEGABYTES[name], "MB", "built", "in"]


def test_without_a_prompt_it_begins_a_text(loaded: tuple[Any, Any], name: str) -> None:
    sample = catalog.sample(name)
    assert sample is not None and loaded[1].encode(sample.prompt) == [loaded[1].bos_token_id]
    assert catalog.sample("smollm2-135m") is None


def test_greedy_text(backend: Backend, loaded: tuple[Any, Any], name: str) -> None:
    model, tokenizer = loaded
    golden = json.loads((GOLDEN / "greedy.json").read_text("utf-8"))[name]
    assert tokenizer.encode(golden["prompt"]) == golden["prompt_tokens"]
    found = mlx_ferrum.stream_generate(
        model, tokenizer, golden["prompt_tokens"], max_tokens=len(golden["tokens"])
    )
    assert [response.token for response in found] == golden["tokens"]


def test_logits(backend: Backend, loaded: tuple[Any, Any], name: str) -> None:
    goldens = np.load(GOLDEN / "real_logits.npz")
    tokens, positions, ids, expected = (
        goldens[f"{name}.{part}"] for part in ("tokens", "positions", "ids", "log_probs")
    )
    found = log_softmax(np.array(loaded[0](mx.array(tokens)[None])[0]))[positions]
    assert kl(expected, coarsen(found, ids)).max() < CLOSE[backend.name]
