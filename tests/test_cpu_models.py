"""Whole models on the cpu backend: threads, caches in files and of other backends, several generations at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, CPU_PORTABLE, REFERENCE, Backend

import mlx_ferrum
from mlx_ferrum import ops, saved
from mlx_ferrum.cache import Cache

PROMPT = "The old lighthouse keeper"


def load_case(folder: Path, name: str, seed: int = 5) -> Any:
    model, _ = mlx_ferrum.load(random_models.write_case(folder / f"{name}.gguf", name, seed))
    return model


def run(model: Any, tokens: np.ndarray, held: Cache | None = None) -> np.ndarray:
    return np.array(model(mx.array(tokens), cache=held))


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 300, shape)


def test_thread_counts_change_nothing(native: Backend, tmp_path: Path) -> None:
    model, tokens = load_case(tmp_path, "llama"), random_tokens(2, 30)
    found = []
    for threads in (1, 2, 3, 5):
        ops.use_backend("cpu", threads=threads)
        held = model.make_cache()
        found.append([run(model, tokens[:, :29], held), run(model, tokens[:, 29:], held)])
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("makes, reads", [(REFERENCE, CPU), (CPU, REFERENCE)], ids=str)
def test_a_cache_of_another_backend_is_refused(
    makes: Backend, reads: Backend, tmp_path: Path
) -> None:
    model, tokens = load_case(tmp_path, "llama"), random_tokens(1, 9)
    held = model.make_cache()
    with makes.in_use():
        run(model, tokens, held)
    said = f"the cache was made by the {makes.name} backend, {reads.name} is in use"
    with reads.in_use(), pytest.raises(ValueError, match=said):
        run(model, tokens, held)
    assert held.offset == 9


def test_a_cache_serves_every_level(tmp_path: Path) -> None:
    """Native code of any instruction set stores the same."""
    model, tokens = load_case(tmp_path, "gemma3"), random_tokens(1, 40)
    with CPU.in_use():
        whole = run(model, tokens)
    held, found = model.make_cache(), []
    for backend, part in zip(
        (CPU, CPU_PORTABLE, CPU), np.split(tokens, [15, 25], axis=1), strict=True
    ):
        with backend.in_use():
            found.append(run(model, part, held))
    assert np.abs(np.concatenate(found, axis=1) - whole).max() < CPU.pieces


@pytest.mark.parametrize("case", ["llama", "gemma3"])
@pytest.mark.parametrize("reader", [REFERENCE, CPU], ids=str)
def test_a_saved_cache_continues(case: str, reader: Backend, tmp_path: Path) -> None:
    model, tokens = load_case(tmp_path, case), random_tokens(1, 40)
    with CPU.in_use():
        whole = run(model, tokens)
        held = model.make_cache()
        run(model, tokens[:, :30], held)
        saved.save(tmp_path / "saved", held)
    with reader.in_use():
        loaded = saved.load(tmp_path / "saved", model)
        ids = loaded.tokens
        found = run(model, tokens[:, 30:], loaded)
    assert ids == tokens[0, :30].tolist()
    assert np.abs(found - whole[:, 30:]).max() < CPU.logit


def test_two_threads_generate_at_once(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    prompts = [PROMPT, "def fibonacci(n):"]

    def text(prompt: str) -> str:
        return mlx_ferrum.generate(model, tokenizer, prompt, max_tokens=12)

    with CPU.in_use():
        alone = [text(prompt) for prompt in prompts]
        together = ["", ""]

        def work(i: int) -> None:
            together[i] = text(prompts[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together == alone
