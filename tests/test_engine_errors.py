"""What goes wrong with one request, or is interrupted, leaves the other texts as they are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE, Backend
from engines import SAMPLED, SIZES, Allowed, alone, differs, run, tokens
from moments import Moments

import mlx_ferrum
from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.sample import make_processors, make_sampler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("engine") / "m.gguf"
    random_models.write(path, "llama", seed=21, sizes=SIZES)
    return mlx_ferrum.load(path)[0]


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with CPU.in_use():
        yield


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
        ({"constraint": Allowed(lambda _: np.zeros(300, bool))}, "every logit is -inf"),
        ({"constraint": Allowed(broken)}, "broken"),
        ({"constraint": Allowed(force=broken)}, "broken"),
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

        def ends(_: int, call: Callable[[], object] = call) -> bool:
            return bool(call())

        [id] = engine.submit(Request([5, 6], 3, ends=ends))
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
