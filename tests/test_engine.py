"""Texts of an engine are those of each request alone, whatever comes and goes beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import random_models
from backends import CPU, METAL, REFERENCE, Backend
from engines import SAMPLED, SIZES, Allowed, Crowd, alone, check_texts, differs, run, tokens
from fakes import FakeModel

import mlx_ferrum
from mlx_ferrum import ops
from mlx_ferrum.engine import Engine, Event, Request
from mlx_ferrum.generate import generate_step
from mlx_ferrum.sample import bias


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("engine") / "m.gguf"
    random_models.write(path, "llama", seed=21, sizes=SIZES)
    return mlx_ferrum.load(path)[0]


@pytest.fixture(scope="module")
def one_type(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For Metal, which compiles a kernel for each type and number of rows."""
    path = tmp_path_factory.mktemp("engine") / "m.gguf"
    random_models.write(path, "llama", seed=21, sizes=SIZES, types=("Q4_K",))
    return mlx_ferrum.load(path)[0]


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("engine") / "m.gguf"
    window = random_models.GEMMA_WINDOW | {
        "attention.sliding_window_pattern": 2
    }  # every other layer
    random_models.write(path, "gemma3", seed=22, sizes=SIZES, tied=True, metadata=window)
    return mlx_ferrum.load(path)[0]


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with CPU.in_use():
        yield


@pytest.mark.parametrize(("kind", "seed"), [("model", 1), ("model", 2), ("windowed", 3)])
def test_two_hundred_requests_in_half_the_room(
    request: pytest.FixtureRequest, kind: str, seed: int
) -> None:
    model, crowd = request.getfixturevalue(kind), Crowd(seed)
    engine = Engine(model, blocks=crowd.wanted // 2, chunk=128, chunk_beside=32)
    known, found = crowd.run(engine)
    check_texts(model, known, found)
    stats = engine.stats()
    assert min(stats.preemptions, stats.hits, stats.forks, stats.cancelled) > 0, stats
    assert (stats.waiting, stats.running, stats.errors) == (0, 0, 0)
    assert not any(held for held, _ in stats.blocks)
    assert stats.generated_tokens == sum(len(tokens(events)) for events in found.values())


@pytest.mark.parametrize(
    ("backend", "kind"),
    [(REFERENCE, "model"), (REFERENCE, "windowed"), (METAL, "one_type")],
    ids=str,
)
def test_lazy_backends_give_the_same_texts(
    request: pytest.FixtureRequest, backend: Backend, kind: str
) -> None:
    """Chosen by the backend, by a sampler, and under a constraint."""
    model = request.getfixturevalue(kind)
    with backend.in_use():
        assert ops.is_lazy()
        engine = Engine(model, blocks=3, chunk=20, chunk_beside=9)
        drawn = Request([4, 5], 3, {**SAMPLED, "seed": 2}, processors=[bias({3: -np.inf})])
        only = Allowed(lambda _: np.arange(300) == 17)
        masked = Request([4, 5], 3, constraint=only, logprobs=True)
        prompts = [[5, 6, 7] * n for n in (1, 7)]
        ids = [engine.submit(Request(prompt, 5))[0] for prompt in prompts]
        [draw], [mask] = engine.submit(drawn), engine.submit(masked)
        found = run(engine)
        for id, prompt in zip(ids, prompts, strict=True):
            assert not differs(model, prompt, tokens(found[id]))
        assert tokens(found[draw]) == alone(model, drawn)
        assert tokens(found[mask]) == [17] * 3
        choice = found[mask][0].choice
        assert choice is not None
        assert choice.logprobs()[17].item() == pytest.approx(0)


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_a_lazy_backend_works_a_step_ahead_of_a_crowd(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """With preemptions, forks, cancels and texts that end before the step ahead is read."""
    model, crowd = request.getfixturevalue(kind), Crowd(5, count=20)
    with REFERENCE.in_use():
        engine = Engine(model, blocks=crowd.wanted // 2, chunk=128, chunk_beside=32)
        known, found = crowd.run(engine)
    check_texts(model, known, found)  # by the cpu backend, which is faster
    stats = engine.stats()
    assert min(stats.preemptions, stats.forks) > 0, stats
    assert stats.waits == 0
    assert not any(held for held, _ in stats.blocks)


def test_a_step_waits_only_for_a_constraint() -> None:
    model: Any = FakeModel()
    with REFERENCE.in_use():
        states = model.make_cache().start()
        engine = Engine(model, states=states)
        engine.submit(Request([4, 5], 4))
        fed = []
        while engine.is_busy:
            given = len(engine.step())
            fed.append((len(model.fed), given))
        assert fed == [(1, 0), (2, 1), (3, 1), (4, 1), (4, 1)]
        assert engine.stats().waits == 0
        free = Allowed()
        engine.submit(Request([4, 5], 3, constraint=free))
        made = tokens(run(engine)[1])
        assert free.asked == [made[:n] for n in range(3)]
        assert engine.stats().waits == 2


def test_at_most_so_many_run(model: Any) -> None:
    engine = Engine(model, most=3)
    for i in range(8):
        engine.submit(Request([1, 2, i], 5))
    while engine.is_busy:
        engine.step()
        assert engine.stats().running <= 3
    assert max(engine.stats().batch_sizes) == 3


def test_prepared_passes_leave_nothing_behind(model: Any) -> None:
    engine = Engine(model, blocks=4)
    engine.prepare(4)
    assert engine.stats().blocks == [(0, 4)]
    request = Request([3, 1, 4], 5)
    [id] = engine.submit(request)
    assert tokens(run(engine)[id]) == alone(model, request)
    with pytest.raises(ValueError, match="sequences is 0"):
        engine.prepare(0)


def test_a_draw_depends_on_its_position_and_not_on_where_the_prompt_ends() -> None:
    model: Any = FakeModel()

    def text(prompt: list[int], limit: int) -> list[int]:
        engine = Engine(model, states=model.make_cache().start())
        [id] = engine.submit(Request(prompt, limit, {"temp": 1.0, "seed": 11}))
        return tokens(run(engine)[id])

    whole = text([3, 1, 4], 12)
    assert len(set(whole)) > 3
    assert text([3, 1, 4, *whole[:5]], 7) == whole[5:]


def test_draws_depend_on_the_seed_and_not_on_company(model: Any) -> None:
    requests = [
        Request([3, 1, 4 + i], 10, {**SAMPLED, "seed": seed})
        for i, seed in enumerate([7, 8, 9, 7, 7])
    ]
    requests.append(Request([3, 1, 4], 10, {**SAMPLED, "seed": 8, "xtc_probability": 0.5}))
    engine = Engine(model)
    ids = [engine.submit(request)[0] for request in requests]
    found = run(engine)
    for id, request in zip(ids, requests, strict=True):
        assert tokens(found[id]) == alone(model, request)


def test_continuations_draw_each_for_itself(model: Any) -> None:
    request = Request([3, 1, 4], 12, {**SAMPLED, "seed": 7})
    engine = Engine(model)
    texts = [tokens(events) for _, events in sorted(run_all(engine, request, 8).items())]
    assert texts[0] == alone(model, request)
    assert len({tuple(text) for text in texts}) == 8
    assert engine.stats().prompt_tokens == 3


def run_all(engine: Engine, request: Request, n: int) -> dict[int, list[Event]]:
    engine.submit(request, n)
    return run(engine)


def test_first_draws_of_many_continuations_have_the_distribution(model: Any) -> None:
    """Chi-square over the likeliest tokens; with one seed for all, one token would have all draws."""
    n, prompt = 600, [3, 1, 4]
    _, logprobs = next(generate_step(prompt, model, max_tokens=1))
    wanted = np.exp(np.array(logprobs, np.float64))
    made = run_all(Engine(model), Request(prompt, 1, {"temp": 1.0, "seed": 5}), n)
    counts = np.bincount([tokens(events)[0] for events in made.values()], minlength=len(wanted))
    likely = wanted * n >= 5
    expected = np.append(wanted[likely], wanted[~likely].sum()) * n
    seen = np.append(counts[likely], counts[~likely].sum())
    degrees = len(expected) - 1
    square = ((seen - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    assert degrees >= 5
    assert square < degrees + 5 * np.sqrt(2 * degrees) + 10


def test_constraints_and_biases_say_what_is_chosen(model: Any) -> None:
    even = Allowed(lambda seen: np.arange(300) % 2 == 0 if len(seen) < 4 else None)
    made = alone(model, Request([5, 7], 6, constraint=even))
    assert all(token % 2 == 0 for token in made[:4])
    assert even.asked == [made[:n] for n in range(6)]
    assert alone(model, Request([5, 7], 3, bias={9: 1000.0})) == [9, 9, 9]


def test_ends_of_texts(model: Any) -> None:
    made = alone(model, Request([5, 7], 8))
    third = made.index(made[2]) + 1
    engine = Engine(model)
    [by_id] = engine.submit(Request([5, 7], 8, end_tokens=[made[2]]))
    [by_call] = engine.submit(Request([5, 7], 8, ends=lambda token: token == made[2]))
    [ignored] = engine.submit(Request([5, 7], 8, end_tokens=[made[2]], ignore_eos=True))
    found = run(engine)
    for id in (by_id, by_call):
        assert tokens(found[id]) == made[:third]
        assert found[id][-1].finish_reason == "stop"
    assert made[2] not in tokens(found[ignored])
    assert len(tokens(found[ignored])) == 8


def test_log_probabilities_are_there_when_asked_for(model: Any) -> None:
    ban = bias({3: -np.inf})
    engine = Engine(model)
    [id] = engine.submit(Request([5, 7], 3, processors=[ban], logprobs=True))
    engine.submit(Request([8], 3))
    found = run(engine)
    wanted = generate_step([5, 7], model, max_tokens=3, logits_processors=[ban])
    for event, (_, logprobs) in zip(found[id], wanted, strict=True):
        assert event.choice is not None
        np.testing.assert_allclose(event.choice.logprobs(), logprobs, atol=1e-3)
    assert all(event.choice is None for event in found[1])


def test_cancelled_texts_say_so_and_their_forks_go_on(model: Any) -> None:
    engine = Engine(model)
    ids = engine.submit(Request([5, 7], 4), 3)
    engine.cancel(ids[0])
    engine.cancel(99)
    assert next((e.id, e.finish_reason) for e in engine.step()) == (0, "cancelled")
    found = run(engine)
    assert [len(tokens(found[id])) + 1 for id in ids[1:]] == [4, 4]
