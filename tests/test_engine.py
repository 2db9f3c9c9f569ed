"""Texts of an engine are those of each request alone, whatever comes and goes beside them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, METAL, REFERENCE, Backend
from fakes import FakeModel
from moments import Moments

import mlx_ferrum
from mlx_ferrum import ops
from mlx_ferrum.engine import Engine, Event, Request
from mlx_ferrum.generate import generate_step
from mlx_ferrum.sample import bias, make_processors, make_sampler

CLOSE = 1e-3  # of the two likeliest log-probabilities: either may be chosen
SIZES = random_models.Sizes(layers=2, context=256)
SAMPLED = {"temp": 1.0, "top_p": 0.95}


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


def run(engine: Engine) -> dict[int, list[Event]]:
    """All events to the end, by text."""
    found: dict[int, list[Event]] = {}
    while engine.is_busy:
        for event in engine.step():
            found.setdefault(event.id, []).append(event)
    assert all(held == 0 for held, _ in engine.stats().blocks)
    return found


def tokens(events: list[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def alone(model: Any, request: Request) -> list[int]:
    engine = Engine(model)
    [id] = engine.submit(request)
    return tokens(run(engine)[id])


def differs(model: Any, prompt: list[int], made: list[int]) -> bool:
    """Whether a greedy text leaves the one of the prompt alone, which it may where two tokens are as likely."""
    for token, (wanted, logprobs) in zip(
        made, generate_step(prompt, model, max_tokens=len(made)), strict=True
    ):
        if token != wanted:
            second, first = np.sort(np.array(logprobs))[-2:]
            assert first - second < CLOSE
            return True
    return False


class Crowd:
    """Requests of random lengths that come in waves."""

    def __init__(self, seed: int, count: int = 200) -> None:
        self.rng = np.random.default_rng(seed)
        starts = [self.ids(40) for _ in range(3)]
        self.requests = []
        for _ in range(count):
            start = starts[self.rng.integers(3)] if self.rng.random() < 0.3 else []
            prompt = start + self.ids(int(self.rng.integers(1, 70)))
            limit = int(self.rng.integers(1, 40))
            self.requests.append(Request(prompt, limit, priority=int(self.rng.integers(2))))
        blocks = [-(-(len(r.prompt) + r.limit) // 32) for r in self.requests]
        self.wanted = max(sum(blocks[i : i + 20]) for i in range(0, count, 20))

    def ids(self, count: int) -> list[int]:
        return self.rng.integers(0, 250, count).tolist()

    def run(self, engine: Engine) -> tuple[dict[int, Request], dict[int, list[Event]]]:
        """Requests and events by text."""
        known: dict[int, Request] = {}
        found: dict[int, list[Event]] = {}
        queue = self.requests.copy()
        while queue or engine.is_busy:
            if len(known) - sum(bool(e[-1].finish_reason) for e in found.values()) < 10:
                for request in queue[:20]:
                    n = int(self.rng.integers(2, 4)) if self.rng.random() < 0.1 else 1
                    known |= dict.fromkeys(engine.submit(request, n), request)
                del queue[:20]
            if self.rng.random() < 0.05:
                engine.cancel(int(self.rng.choice(list(known))))
            for event in engine.step():
                found.setdefault(event.id, []).append(event)
        return known, found


def check_texts(model: Any, known: dict[int, Request], found: dict[int, list[Event]]) -> None:
    """Every text is that of its request alone, or was cancelled."""
    assert found.keys() == known.keys()
    exceptions = 0
    for id, events in found.items():
        wanted, made, reason = known[id], tokens(events), events[-1].finish_reason
        assert [event for event in events if event.finish_reason] == events[-1:]
        assert reason == ("length" if len(made) == wanted.limit else "cancelled")
        exceptions += differs(model, list(wanted.prompt), made) if made else 0
    assert exceptions <= len(known) // 20


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
    """Chosen by the backend, by a sampler, and under a mask."""
    model = request.getfixturevalue(kind)
    with backend.in_use():
        assert ops.is_lazy()
        engine = Engine(model, blocks=3, chunk=20, chunk_beside=9)
        drawn = Request([4, 5], 3, {**SAMPLED, "seed": 2}, processors=[bias({3: -np.inf})])
        masked = Request([4, 5], 3, mask=lambda _: np.arange(300) == 17, logprobs=True)
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


def test_a_step_waits_only_for_a_mask() -> None:
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
        seen: list[list[int]] = []
        mask = lambda ids: seen.append(np.asarray(ids).tolist())  # noqa: E731
        engine.submit(Request([4, 5], 3, mask=mask))
        made = tokens(run(engine)[1])
        assert seen == [[4, 5], [4, 5, made[0]], [4, 5, *made[:2]]]
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


def spoiled(tokens: mx.array, logits: mx.array) -> mx.array:
    return logits * float("nan")


def broken(*_: Any) -> Any:
    raise KeyError("broken")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"processors": [spoiled]}, "a logit is NaN"),
        ({"processors": [broken]}, "broken"),
        ({"processors": [lambda _, logits: logits[0]]}, "a processor gave"),
        ({"sampler": broken}, "broken"),
        ({"sampler": lambda logprobs: mx.array([10**6])}, "token 1000000, expected 0 to 299"),
        ({"sampler": lambda logprobs: mx.array([1, 2])}, "the sampler gave 2 tokens for 1 text"),
        ({"mask": lambda _: np.zeros(300, bool)}, "the mask allows no token"),
        ({"mask": lambda _: np.ones(3, bool)}, r"the mask gave bool \(3,\), expected"),
        ({"ends": broken}, "broken"),
        ({"bias": dict.fromkeys(range(300), -np.inf)}, "every logit is -inf"),
    ],
)
def test_an_error_ends_one_text_alone(model: Any, options: dict[str, Any], said: str) -> None:
    engine = Engine(model)
    [before] = engine.submit(Request([1, 2], 6))
    [bad] = engine.submit(Request([1, 2, 3], 6, **options))
    [after] = engine.submit(Request([9] * 40, 6))
    found = run(engine)
    assert found[bad][-1].finish_reason == "error"
    assert re.search(said, str(found[bad][-1].error))
    assert not differs(model, [1, 2], tokens(found[before]))
    assert not differs(model, [9] * 40, tokens(found[after]))
    assert engine.stats().errors == 1


def test_a_row_that_is_not_a_number_ends_one_text(model: Any) -> None:
    engine = Engine(model)
    [good], [bad] = (engine.submit(Request([token], 3)) for token in (1, 2))
    plain = engine._forward

    def spoil(batch: Any) -> Any:
        logits, likeliest, ranges = plain(batch)
        return logits, likeliest, np.where(batch.tokens[:, None] == 2, np.nan, ranges)

    engine._forward = spoil
    found = run(engine)
    assert found[bad][-1].finish_reason == "error"
    assert "after 1 tokens a logit is NaN" in str(found[bad][-1].error)
    assert len(tokens(found[good])) == 3


def test_masks_and_biases_say_what_is_chosen(model: Any) -> None:
    seen = []

    def even(ids: Any) -> Any:
        seen.append(np.asarray(ids).tolist())
        return np.arange(300) % 2 == 0 if len(ids) < 6 else None

    made = alone(model, Request([5, 7], 6, mask=even))
    assert all(token % 2 == 0 for token in made[:4])
    assert seen == [[5, 7, *made[:n]] for n in range(6)]
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


def test_an_interrupted_step_is_made_again(model: Any) -> None:
    calls = []

    def interrupt(logprobs: mx.array) -> mx.array:
        calls.append(1)
        if len(calls) in (1, 4):
            raise KeyboardInterrupt
        return make_sampler()(logprobs)

    engine = Engine(model)
    [first] = engine.submit(Request([5, 7], 4))
    [second] = engine.submit(Request([5, 8], 4, interrupt))
    made: dict[int, list[int]] = {first: [], second: []}
    while engine.is_busy:
        try:
            for event in engine.step():
                made[event.id] += tokens([event])
        except KeyboardInterrupt:
            pass
    assert [len(made[first]), len(made[second])] == [4, 4]
    assert not differs(model, [5, 7], made[first])
    assert not differs(model, [5, 8], made[second])


@pytest.mark.parametrize(("backend", "count"), [(REFERENCE, 15), (CPU, 60)], ids=str)
def test_ctrl_c_at_any_moment_loses_no_event(model: Any, backend: Backend, count: int) -> None:
    """Greedy and drawn texts, two of them forks, in too little room: each event comes once."""

    def texts(at: int) -> tuple[dict[int, list[int]], int]:
        engine = Engine(model, blocks=4, chunk=20, chunk_beside=9)
        penalty = make_processors(repetition_penalty=1.5)
        engine.submit(Request([5, 6, 7] * 12, 6, processors=penalty))
        engine.submit(Request([5, 6, 8], 6, {**SAMPLED, "seed": 3}), 2)
        made: dict[int, list[int]] = {}
        moments = Moments(at)
        while engine.is_busy:
            sys.settrace(moments)
            try:
                events = engine.step()
            except KeyboardInterrupt:
                moments.at = -1  # once is enough
                continue
            finally:
                sys.settrace(None)
            for event in events:
                made.setdefault(event.id, []).extend(tokens([event]))
        assert engine.stats().blocks == [(0, 4)]
        return made, moments.count

    with backend.in_use():
        wanted, lines = texts(-1)
        assert [len(ids) for _, ids in sorted(wanted.items())] == [6, 6, 6]
        for at in np.random.default_rng(4).integers(0, lines, count).tolist():
            assert texts(at)[0] == wanted, at


def test_what_does_not_fit_is_refused(model: Any) -> None:
    engine = Engine(model, blocks=2)
    with pytest.raises(ValueError, match="60 prompt tokens and 6 to generate need 3 blocks"):
        engine.submit(Request([1] * 60, 6))
    with pytest.raises(ValueError, match="250 prompt tokens and 7 to generate, expected at most"):
        engine.submit(Request([1] * 250, 7))
    with pytest.raises(ValueError, match="the prompt has token 300, expected 0 to 299"):
        engine.submit(Request([300], 7))
    with pytest.raises(ValueError, match="the bias has token 300, expected 0 to 299"):
        engine.submit(Request([1], 7, bias={300: 1.0}))
    with pytest.raises(ValueError, match="n is 0"):
        engine.submit(Request([1], 7), 0)
    assert not engine.is_busy


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [1.5]}, "the prompt has 1.5, expected token ids"),
        ({"history": [True]}, "history has True, expected token ids"),
        ({"limit": 0}, "limit is 0"),
        ({"sampler": 3}, "sampler is 3, expected a function"),
        ({"sampler": {"temp": -1}}, "temp is -1"),
        ({"processors": [3]}, "logits_processors has 3, expected functions"),
        ({"priority": 0.5}, "priority is 0.5"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Request(**{"prompt": [1], "limit": 1, **options})


@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"sampler": lambda logprobs: mx.array([10**6])},
        {"processors": [lambda seen, logits: np.array(logits)]},
        {"processors": [lambda seen, logits: logits / 0 if len(seen) > 3 else logits]},
    ],
    ids=["token", "numpy", "late"],
)
def test_a_text_does_not_hold_up_the_others(
    model: Any, backend: Backend, options: dict[str, Any]
) -> None:
    with backend.in_use():
        engine = Engine(model)
        [odd], [plain] = (
            engine.submit(Request([5, 6], 4, **options)),
            engine.submit(Request([5, 7], 4)),
        )
        found = run(engine)
        assert len(tokens(found[plain])) == 4
        if found[odd][-1].error is None:
            assert tokens(found[odd]) == alone(model, Request([5, 6], 4))
        elif "processors" in options:
            assert len(tokens(found[odd])) == 2, "those before the error are given"


def test_functions_of_requests_do_not_change_what_goes_on(model: Any) -> None:
    engine = Engine(model)
    for call in (engine.close, engine.step):
        [id] = engine.submit(Request([5, 6], 3, ends=lambda _, call=call: bool(call())))  # type: ignore[misc]
        error = run(engine)[id][-1].error
        assert isinstance(error, RuntimeError) and "within a step" in str(error)


def test_a_past_that_could_hold_others_up_is_refused(model: Any) -> None:
    states = model.make_states()
    engine, past = Engine(model, states=states), states.begin()
    engine.submit(Request([5, 6], 3), past=past)
    with pytest.raises(ValueError, match="the past is being extended already"):
        engine.submit(Request([5, 6], 3), past=past)
    with pytest.raises(ValueError, match="n is 2 with a past"):
        engine.submit(Request([5, 6], 3), 2, past=past)
    narrow = model.make_states(blocks=4)
    with pytest.raises(ValueError, match="a past in a pool that has a size"):
        Engine(model, states=narrow).submit(Request([5, 6], 3), past=narrow.begin())


@pytest.mark.parametrize("name", ["most", "blocks", "chunk", "chunk_beside"])
@pytest.mark.parametrize("value", [0, 1.5])
def test_bad_sizes_are_refused(model: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Engine(model, **{name: value})


def test_close_frees_everything(model: Any) -> None:
    engine = Engine(model, blocks=4)
    for n in (1, 3):
        engine.submit(Request([1] * 70, 9), n)
    engine.step()
    engine.close()
    assert not engine.is_busy
    assert engine.step() == []
    assert engine.stats().blocks == [(0, 4)]
