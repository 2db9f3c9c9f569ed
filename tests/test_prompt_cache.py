"""Prompt caches: going back behind a sliding window is cheap, and right; both names of the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE, Backend
from fakes import FakeModel, byte_tokenizer

import mlx_ferrum
from mlx_ferrum import cache
from mlx_ferrum.generate import PromptCache, generate_step, stream_generate


def turn(held: PromptCache, tokenizer: Any, prompt: list[int], count: int) -> tuple[list[int], int]:
    """Generate with a reused cache; the tokens, and how many prompt tokens were processed."""
    rest = held.start(prompt)
    options: Any = {"max_tokens": count, "prompt_cache": held.cache, "ignore_eos": True}
    made = [r.token for r in stream_generate(held.model, tokenizer, rest, **options)]
    return made, len(rest)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
def test_a_turn_that_differs_late_is_cheap_behind_a_window(
    backend: Backend, saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far past the window of 8, whose blocks are freed 16 positions behind it; also from a file."""
    monkeypatch.setattr(cache, "SLACK", 16)
    path = random_models.write_case(tmp_path / "m.gguf", "gemma3", seed=4)
    ids = np.random.default_rng(2).integers(0, 250, 60).tolist()
    with backend.in_use():
        model, tokenizer = mlx_ferrum.load(path)
        held = PromptCache(model)
        for end in (40, 43, 50):
            turn(held, tokenizer, ids[:end], 5)
        if saved:
            held.save(tmp_path / "saved")
            held = PromptCache.load(tmp_path / "saved", model)
        other = [*ids[:45], 7, 8, 9]
        made, processed = turn(held, tokenizer, other, 4)
        assert processed == 3, "5 generated ones and 5 of the prompt were taken back"
        assert made == turn(PromptCache(model), tokenizer, other, 4)[0]


def test_gemma_past_its_window_goes_back_by_a_turn(gemma3: tuple[Any, Any]) -> None:
    """1,300 tokens: more than is kept of a window of 512."""
    model, tokenizer = gemma3
    text = "".join(f"Sentence number {i} of the story. " for i in range(220))
    ids = tokenizer.encode(text)[:1300]
    with CPU.in_use():
        held = PromptCache(model)
        turn(held, tokenizer, ids, 6)
        other = [*ids[:-1], *tokenizer.encode(" But then", add_special=False)]
        made, processed = turn(held, tokenizer, other, 4)
        assert processed == len(other) - len(ids) + 1
        assert held.tokens[: len(other)] == other
        assert made == turn(PromptCache(model), tokenizer, other, 4)[0]


@pytest.mark.parametrize("name", ["cache", "prompt_cache"])
def test_a_cache_goes_by_two_names(name: str) -> None:
    model: Any = FakeModel()
    tokenizer: Any = byte_tokenizer()
    held: dict[str, Any] = {name: model.make_cache()}
    list(generate_step([5, 9, 3], model, max_tokens=1, **held))
    assert held[name].offset == 3
    options = {"max_tokens": 1, "ignore_eos": True, **held}
    list(stream_generate(model, tokenizer, [5, 9, 3], **options))
    mlx_ferrum.generate(model, tokenizer, [5, 9, 3], **options)
    assert held[name].offset == 9
