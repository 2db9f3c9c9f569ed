"""Whole small models: each text of a ragged batch gets the logits that it gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_blocks
import random_models
from backends import CPU, METAL, REFERENCE, Backend
from divergence import kl, log_softmax
from ragged import Alone, Reading, small_states

import mlx_ferrum
from mlx_ferrum.engine.choosing import forward
from mlx_ferrum.generate import generate_step
from mlx_ferrum.state.kinds import Recurrent
from mlx_ferrum.state.pool import OutOfBlocksError

CASES = [
    *((backend, name) for backend in (REFERENCE, CPU) for name in random_models.CASES),
    (METAL, "llama"),
    (METAL, "gemma3"),
]
# A kernel is compiled for each type and number of rows; test_logits.py has models of all types.
TYPES = {("gpu", "llama"): ("Q4_K", "Q6_K"), ("gpu", "gemma3"): ("Q4_K",)}
MOST = {"reference": 1e-6, "cpu": 1e-4, "gpu": 1e-3}  # KL in nats
NARROW = 5e-2  # nats: KL of the logits with 8-bit keys and values to those with 16 bits
CLOSE = 1e-3  # of the two likeliest logits: either may be chosen


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Backend]]:
    backend, name = request.param
    with backend.in_use():
        case = random_models.CASES[name]
        case = case | {"types": TYPES.get((backend.kind, name), random_blocks.TYPES)}
        path = random_models.write(tmp_path / "m.gguf", seed=11, **case)
        yield mlx_ferrum.load(path)[0], backend


def has_recurrent(model: Any) -> bool:
    """Whether layers keep states that cannot be cut back."""
    return any(isinstance(kind, Recurrent) for kind in model.body.keeps)


def drawn(seed: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 250, n).tolist() for n in lengths]


def test_rows_are_as_alone(loaded: tuple[Any, Backend]) -> None:
    """Chunks beside decodes, texts that end and others that begin, some with what an ended one began with."""
    model, backend = loaded
    texts = drawn(1, 5, 17, 2, 23, 9)
    texts += [[*texts[0][:4], *texts[3][:7]], [*texts[1][:13], 3, 1, 4], [*texts[2], 8, 8, 8]]
    texts += [texts[1]]
    reading = Reading(model, small_states(model, block=3, blocks=40), texts, seed=2).run()
    reused = sum(start > 0 for start in reading.starts.values())
    assert reused >= (1 if has_recurrent(model) else 2), "prefixes are reused"
    assert len(reading.sizes) > 5
    compared = 0
    for n, text in enumerate(texts):
        alone = Alone(model, text)
        for position in range(reading.starts[n], len(text)):
            if not alone.agrees(position, reading.experts[n, position]):
                break  # this row and all after it
            found, wanted = reading.logits[n, position], alone.logits[position]
            assert kl(log_softmax(wanted), log_softmax(found)) < MOST[backend.kind], (n, position)
            compared += 1
    assert compared > 0.7 * len(reading.logits)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2moe", "qwen3moe", "qwen35", "qwen3next"])
@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
def test_greedy_texts_are_as_alone(backend: Backend, name: str, tmp_path: Path) -> None:
    """Five texts in step, by the recorded step where there is one; they leave one by one."""
    with backend.in_use():
        model = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", name, seed=12))[0]
        states, step = small_states(model, block=4, blocks=80), forward(model)
        prompts, counts = drawn(3, 6, 1, 11, 4, 8), [12, 12, 9, 5, 12]
        texts = [list(ids) for ids in prompts]
        active = [(n, states.begin(ids)) for n, ids in enumerate(prompts)]
        while active:
            rows = [(s, len(texts[n]) - s.position) for n, s in active]
            ids = [i for n, s in active for i in texts[n][s.position :]]
            batch = states.batch(rows, np.array(ids))
            _, chosen, _ = step(batch)
            batch.advance()
            for (n, _), token in zip(active, np.array(chosen).tolist(), strict=True):
                texts[n].append(token)
            done = [(n, s) for n, s in active if len(texts[n]) == len(prompts[n]) + counts[n]]
            for _, sequence in done:
                states.free(sequence)
            active = [pair for pair in active if pair not in done]
        for ids, text, count in zip(prompts, texts, counts, strict=True):
            check_greedy(model, ids, text[len(ids) :], count)


def check_greedy(model: Any, prompt: list[int], made: list[int], count: int) -> None:
    """As one text alone has it, up to a choice between two that are as likely."""
    for n, (token, logprobs) in enumerate(generate_step(prompt, model, max_tokens=count)):
        if token != made[n]:
            second, first = np.sort(np.array(logprobs))[-2:]
            assert first - second < CLOSE, n
            return


def test_a_prefix_that_an_ended_text_held_is_not_read_again(loaded: tuple[Any, Backend]) -> None:
    model, backend = loaded
    (text,) = drawn(4, 26)
    states = small_states(model, block=4, blocks=30)
    first = Reading(model, states, [text[:24]], seed=1).run()
    again = Reading(model, states, [[*text[:22], 7, 8, 9]], seed=1).run()
    assert first.starts[0] == 0
    if has_recurrent(model):  # there is a snapshot where a pass happened to end with a block
        assert again.starts[0] in (4, 8, 12, 16, 20)
    else:
        assert again.starts[0] == 20
    alone = Alone(model, [*text[:22], 7, 8, 9])
    for (_, position), logits in again.logits.items():
        if not alone.agrees(position, again.experts[0, position]):
            break
        found = kl(log_softmax(alone.logits[position]), log_softmax(logits))
        assert found < MOST[backend.kind], position


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
def test_out_of_blocks_changes_nothing(backend: Backend, name: str, tmp_path: Path) -> None:
    with backend.in_use():
        model = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", name, seed=13))[0]
        states = small_states(model, block=2, blocks=9)
        one, two = drawn(5, 8, 7)

        def read(*rows: tuple[Any, list[int]]) -> np.ndarray:
            ids = [i for _, new in rows for i in new]
            batch = states.batch([(s, len(new)) for s, new in rows], np.array(ids))
            logits = np.array(model.scores(batch.last(model.body(batch))))
            batch.advance()
            return logits

        first, second = states.begin(one), states.begin(two)
        read((first, one))
        room = states.room()
        for _ in range(2):
            with pytest.raises(OutOfBlocksError):
                read((first, [1]), (second, [*two, *two]))
            assert (first.position, second.position, states.room()) == (8, 0, room)
        found = read((first, [1]), (second, two))
        for logits, ids in zip(found, ([*one, 1], two), strict=True):
            assert np.abs(logits - Alone(model, ids).logits[-1]).max() < backend.pieces
        states.free(first)
        found = read((second, [5, 6, 7]))
        wanted = Alone(model, [*two, 5, 6, 7]).logits[-1]
        assert np.abs(found[0] - wanted).max() < backend.pieces


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2", "qwen3"])
@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
def test_keys_and_values_of_8_bits(backend: Backend, name: str, tmp_path: Path) -> None:
    """Half the memory, other logits, and a KL that is stated; both backends store the same numbers."""
    with backend.in_use():
        model = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", name, seed=14))[0]
        (ids,) = drawn(6, 60)
        cache = model.make_cache(kv_bits=8)
        parts = [np.array(model(mx.array([ids[a:b]]), cache=cache)) for a, b in ((0, 41), (41, 60))]
        found, wanted = np.concatenate(parts, axis=1)[0], Alone(model, ids).logits
        far = kl(log_softmax(wanted), log_softmax(found))
        assert 1e-9 < far.max() < NARROW
