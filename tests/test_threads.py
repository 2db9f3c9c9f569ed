"""Any thread can generate: nothing that is loaded or made in one is still to be computed by it.

A lazy MLX array belongs to the stream of the thread that made it; others cannot evaluate it.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, METAL, REFERENCE

import mlx_ferrum
from mlx_ferrum import blocks, sample, saved
from mlx_ferrum.generate import generate_step
from mlx_ferrum.tensor import QTensor

T = TypeVar("T")
PROMPT = [5, 9, 3, 17, 22, 9, 31, 12, 40, 2, 7]
# Norms of heads and windows; a shared expert and biases; rotary factors and a tied head; recurrent layers.
CASES = [
    *(
        (backend, case)
        for backend in (REFERENCE, CPU)
        for case in ("gemma3", "qwen2moe", "llama-tied-rope_freqs")
    ),
    (METAL, "llama"),
    (REFERENCE, "qwen35"),
]


@pytest.fixture(params=[REFERENCE, CPU], ids=str)
def each_backend(request):
    """In use: one that samples with MLX, lazily, and one with NumPy."""
    with request.param.in_use() as backend:
        yield backend


def in_threads(*calls: Callable[[], T]) -> list[T]:
    """Each call's result, of a thread of its own; all at once, and all done before this returns."""
    done: dict[int, Any] = {}
    start = threading.Barrier(len(calls))

    def run(i: int) -> None:
        start.wait()
        try:
            done[i] = calls[i]()
        except BaseException as error:  # noqa: BLE001
            done[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in done.values():
        if isinstance(found, BaseException):
            raise found
    return [done[i] for i in range(len(calls))]


def in_thread(call: Callable[[], T]) -> T:
    return in_threads(call)[0]


def text(model: Any, prompt: Sequence[int] = PROMPT, **options: Any) -> list[int]:
    return [token for token, _ in generate_step(prompt, model, max_tokens=6, **options)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def path(request, tmp_path):
    """A model's file; its backend is in use."""
    backend, name = request.param
    with backend.in_use():
        yield random_models.write_case(tmp_path / "m.gguf", name, seed=1)


def test_a_model_loaded_in_one_thread_generates_in_others(path):
    model, _ = in_thread(lambda: mlx_ferrum.load(path))
    one, other = in_thread(lambda: text(model)), in_thread(lambda: text(model))
    both = in_threads(lambda: text(model), lambda: text(model))
    assert [one, other, *both] == [text(model)] * 4


def test_loading_leaves_weights_in_the_file(path):
    model, _ = mlx_ferrum.load(path)
    weights = [x for m in model.modules() for x in vars(m).values() if isinstance(x, QTensor)]
    assert len(weights) > 20
    assert not any("array" in vars(w) for w in weights)


def test_a_window_made_in_one_thread_serves_others(tmp_path, monkeypatch):
    """As Metal has it, a slice of whole pages."""
    raw = np.random.default_rng(1).bytes(3 * mmap.PAGESIZE)
    (tmp_path / "bytes").write_bytes(raw)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "from_dlpack", lambda pages, copy: mx.array(pages))
    buffer = np.memmap(tmp_path / "bytes", np.uint8, "r")
    w = QTensor(blocks.Q4_0, (4, 64), buffer, mmap.PAGESIZE + 36)
    in_thread(lambda: w.array)
    found = in_thread(lambda: np.array(w.array + 0).view(np.uint8))
    assert np.array_equal(found, w.data)


def test_two_threads_use_a_model_first(path):
    """At once, so that what is made at the first use is made by either."""
    model, _ = mlx_ferrum.load(path)
    one, other = in_threads(lambda: text(model), lambda: text(model))
    assert one == other == text(model)


def test_a_conversation_goes_on_in_another_thread(path, tmp_path):
    """Its cache was made in one, saved and read in others; a generation was left early."""
    model, _ = mlx_ferrum.load(path)
    held = model.make_cache()

    def begin() -> int:
        steps = generate_step(PROMPT, model, cache=held)
        token, _ = next(steps)
        steps.close()
        return token

    token = in_thread(begin)
    # a lazy backend has begun the next step
    assert in_thread(lambda: held.rewind(len(PROMPT))) == len(PROMPT)
    file = tmp_path / "cache.safetensors"
    in_thread(lambda: saved.save(file, held))
    restored = in_thread(lambda: saved.load(file, model))
    tokens = restored.tokens
    assert tokens == PROMPT
    wanted = text(model, [*PROMPT, token, 8])
    assert in_thread(lambda: text(model, [token, 8], cache=held)) == wanted
    assert in_thread(lambda: text(model, [token, 8], cache=restored)) == wanted


@pytest.mark.parametrize("temp", [0.0, 1.0], ids=["greedy", "drawn"])
def test_a_generation_goes_from_thread_to_thread(each_backend, temp, tmp_path):
    """As where a pool of threads is asked for each token."""
    model, _ = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", "gemma3", seed=1))

    def begin() -> Any:
        options: dict[str, Any] = {"top_k": 9, "seed": 1} if temp else {}
        return generate_step(
            PROMPT,
            model,
            max_tokens=6,
            sampler=sample.make_sampler(temp, **options),
            logits_processors=sample.make_processors(repetition_penalty=1.3),
        )

    def step(steps: Any) -> tuple[int, list[float]]:
        token, logprobs = next(steps)
        return token, logprobs.tolist()

    alone, shared = begin(), begin()
    for _ in range(6):
        assert in_thread(lambda: step(shared)) == step(alone)


def test_a_sampler_serves_any_thread(each_backend, tmp_path):
    model, _ = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", "llama", seed=1))
    options: dict[str, Any] = {"xtc_probability": 0.5, "top_k": 50}

    def draw(sampler: sample.Sampler) -> list[int]:
        return text(model, sampler=sampler)

    def twice(sampler: sample.Sampler) -> list[list[int]]:
        return [draw(sampler), draw(sampler)]

    wanted = twice(sample.make_sampler(1.0, seed=3, **options))
    sampler = in_thread(lambda: sample.make_sampler(1.0, seed=3, **options))
    assert [in_thread(lambda: draw(sampler)), in_thread(lambda: draw(sampler))] == wanted
    processors = in_thread(lambda: sample.make_processors(logit_bias={7: -mx.inf, 8: 50.0}))
    found = in_thread(lambda: text(model, logits_processors=processors))
    assert found == [8] * 6


def test_threads_draw_differently(each_backend, tmp_path):
    """MLX's generator starts alike in each of them."""
    model, _ = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", "llama", seed=1))

    def draw() -> tuple[int, ...]:
        return tuple(text(model, sampler=sample.make_sampler(1.0)))

    assert len({in_thread(draw) for _ in range(3)} | set(in_threads(draw, draw))) > 1
