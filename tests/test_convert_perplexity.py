"""`perplexity`: held to the softmax of whole logits, and to what is known of models that guess."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum.convert import chunks, perplexity
from mlx_ferrum.convert.command import main

SIZE, COUNT = 16, 3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity")
    text = " ".join(f"{n} boats on the sea near Oban," for n in range(40))
    (folder / "text.txt").write_text(text)
    sizes = Sizes(layers=2, experts=6, used=2)
    return random_models.write(folder / "m.gguf", "qwen3moe", 3, sizes=sizes, types=("F16", "Q8_0"))


def by_hand(path: Path, size: int, count: int) -> np.ndarray:
    """-log p of each scored token, from the logits of whole chunks."""
    model, tokenizer = mlx_ferrum.load(path)
    ids = tokenizer.encode((path.parent / "text.txt").read_text(), add_special=False)
    out = []
    for start in range(0, size * count, size):
        chunk = ids[start : start + size]
        logits = np.asarray(model(mx.array([chunk])))[0].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        out += [-math.log(p[i, chunk[i + 1]]) for i in range(size // 2, size - 1)]
    return np.array(out)


def run(capsys: Any, *args: object) -> dict[str, Any]:
    assert main(["perplexity", *map(str, args), "--json", "--backend", "reference"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("size", "rows"), [(SIZE, 64), (SIZE, 3), (SIZE + 1, 4), (4, 64)])
def test_numbers(
    path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, size: int, rows: int
) -> None:
    monkeypatch.setattr(perplexity, "ROWS", rows)
    options = ["--chunk-size", size, "--chunks", COUNT]
    found = run(capsys, path, path.parent / "text.txt", *options)
    nats = by_hand(path, size, COUNT)
    assert found["tokens"] == nats.size == COUNT * (size - 1 - size // 2)
    assert found["chunks"] == COUNT and found["chunk_size"] == size
    assert found["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-4)
    error = nats.std(ddof=1) / math.sqrt(nats.size)
    assert found["loss_error"] == pytest.approx(error, rel=1e-4) and error > 0
    assert found["perplexity_error"] == pytest.approx(error * math.exp(nats.mean()), rel=1e-4)


def test_text_output_and_a_single_token(path: Path, capsys: Any) -> None:
    text = path.parent / "text.txt"
    assert main(["perplexity", str(path), str(text), "--chunk-size", "4", "--chunks", "1"]) == 0
    said = capsys.readouterr().out
    assert "scored     1 tokens, in 1 chunks of 4" in said and "+- inf" in said
    found = run(capsys, path, text, "--chunk-size", 4, "--chunks", 1)
    assert found["loss_error"] is None and found["perplexity_error"] is None


def test_equal_logits_are_worth_the_vocabulary(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = mlx_ferrum.load(path)
    pieces = chunks.read(path.parent / "text.txt", tokenizer, SIZE)
    monkeypatch.setattr(
        type(model), "head", lambda self, x: mx.zeros((*x.shape[:-1], self.args.vocab_size)) - 1e4
    )
    loss = perplexity.measure(model, pieces)
    assert loss.perplexity == pytest.approx(model.args.vocab_size)
    assert loss.perplexity_error == pytest.approx(0, abs=1e-4)


def test_logits_that_are_not_finite_name_the_model(
    path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(mlx_ferrum.load(path)[0])
    monkeypatch.setattr(
        kind, "head", lambda self, x: mx.full((*x.shape[:-1], self.args.vocab_size), math.nan)
    )
    text = str(path.parent / "text.txt")
    assert main(["perplexity", str(path), text, "--chunk-size", str(SIZE)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: expected finite logits, found nan")


def test_loss_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite loss, found inf"):
        perplexity.Loss().add(np.array([1.0, np.inf]))


def test_chunks_begin_with_the_token_that_begins_a_text(
    path: Path, gemma3: Any, smollm2: Any
) -> None:
    text = path.parent / "text.txt"
    for (_, tokenizer), before in ((gemma3, [2]), (smollm2, [])):
        pieces = chunks.read(text, tokenizer, 20)
        ids = [*before, *tokenizer.encode(text.read_text(), add_special=False)]
        assert len(pieces) == len(ids) // 20 > 2
        for n, piece in enumerate(pieces):
            expected = ids[20 * n : 20 * n + 20]
            assert piece == ([*before, *expected[1:]] if before else expected)
        assert chunks.read(text, tokenizer, 20, 2) == pieces[:2]
