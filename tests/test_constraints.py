"""Texts under constraints: tokens that have no alternative are read at once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import CPU, REFERENCE, Backend
from engines import Allowed, alone, run, tokens
from fakes import FakeModel

from mlx_ferrum import ops
from mlx_ferrum.engine import Engine, Event, Request
from mlx_ferrum.sample import penalties
from mlx_ferrum.state.kinds import KV
from mlx_ferrum.state.model import ModelStates

VOCAB = 40
FORCED = [[7, 8, 9, 7], [3], [11, 12, 13, 14, 15, 16, 17, 18, 19]]


class Model(FakeModel):
    def make_states(self, *, blocks: int | None = None, **_: Any) -> ModelStates:
        return ModelStates([KV(1, 1, 1)], ops.allocate, blocks=blocks)


def behind(seen: list[int]) -> list[int]:
    """What has to follow: now and then some tokens, by the last one."""
    for count in range(len(seen)):
        start = seen[: len(seen) - count]
        rule = FORCED[start[-1] % 3] if len(start) % 2 and start[-1] > 20 else []
        if rule[:count] == seen[len(seen) - count :] and len(rule) > count:
            return rule[count:]
    return []


def allow(seen: list[int]) -> np.ndarray:
    """The same as bits; elsewhere all tokens but 5 and 6."""
    ids = np.arange(VOCAB)
    rest = behind(seen)
    return ids == rest[0] if rest else (ids != 5) & (ids != 6)


def asked(**options: Any) -> Request:
    return Request([4, 2, 30], 40, **options)


@pytest.mark.parametrize("backend", [CPU, REFERENCE], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": {"temp": 3.0, "top_p": 0.9, "seed": 3}},
        {"processors": [penalties(1.7, window=9)]},
        {"bias": {25: 2.0}, "history": [25, 26]},
    ],
    ids=["greedy", "drawn", "penalized", "biased"],
)
def test_forced_tokens_change_nothing_but_the_steps(
    backend: Backend, options: dict[str, Any]
) -> None:
    with backend.in_use():
        model: Any = Model(VOCAB)
        slow = alone(model, asked(constraint=Allowed(allow), **options))
        steps = len(model.fed)
        model.fed.clear()
        rule = Allowed(allow, behind)
        assert alone(model, asked(constraint=rule, **options)) == slow
        assert len(slow) == 40 and any(behind(slow[:n]) for n in range(40))
        if backend is CPU:
            assert len(model.fed) == len(rule.asked) < steps
        else:  # the token before forced ones is read before they are known
            assert len(model.fed) <= steps
        assert not {5, 6} & set(slow)


@pytest.mark.parametrize("backend", [CPU, REFERENCE], ids=str)
def test_many_texts_in_too_small_a_pool(backend: Backend) -> None:
    """Each continuation follows by itself, also after preemptions, beside texts without a constraint."""
    with backend.in_use():
        model: Any = Model(VOCAB, context=200)
        requests = [
            Request([n] * (20 + n), 60, {"temp": 1.0, "seed": n}, constraint=rule)
            for n in range(1, 6)
            for rule in (Allowed(allow, behind), None)
        ]
        engine = Engine(model, blocks=12)
        wanted: dict[int, list[int]] = {}
        for request in requests:
            first = alone(model, request)
            for index, id in enumerate(engine.submit(request, n=2)):
                wanted[id] = first if index == 0 else []
        found = run(engine)
        assert engine.stats().preemptions > 0
        for id, events in found.items():
            assert len(tokens(events)) == 60 and events[-1].finish_reason == "length"
            assert not wanted[id] or tokens(events) == wanted[id]
        second = tokens(found[1])
        for count in range(60):
            if rest := behind(second[:count]):
                assert second[count] == rest[0]


def ended(**options: Any) -> list[Event]:
    model: Any = Model(VOCAB)
    engine = Engine(model)
    engine.submit(Request([4, 5], **options))
    return run(engine)[0]


def always(seen: list[int]) -> list[int]:
    return [20, 21, 22, 23, 24] if len(seen) == 1 else []


@pytest.mark.parametrize(
    ("options", "count", "reason"),
    [
        ({"limit": 4}, 4, "length"),
        ({"limit": 9, "end_tokens": [22]}, 4, "stop"),
        ({"limit": 9, "ends": lambda token: token == 21}, 3, "stop"),
        ({"limit": 9, "constraint": Allowed(force=always, most=5)}, 5, "stop"),
        ({"limit": 9, "constraint": Allowed(force=always, most=1)}, 1, "stop"),
        ({"limit": 9}, 9, "length"),
    ],
)
def test_a_text_may_end_among_forced_tokens(
    options: dict[str, Any], count: int, reason: str
) -> None:
    with CPU.in_use():
        events = ended(**{"constraint": Allowed(force=always), **options})
    assert tokens(events)[1:] == [20, 21, 22, 23, 24, *tokens(events)[6:]][: count - 1]
    assert len(events) == count
    assert [event.finish_reason for event in events] == [None] * (count - 1) + [reason]


def test_log_probabilities_are_computed_one_by_one() -> None:
    with CPU.in_use():
        events = ended(limit=12, constraint=Allowed(allow, behind), logprobs=True)
    for event in events:
        assert event.choice is not None and np.isfinite(event.choice.logprobs()[event.token].item())


def test_an_error_among_forced_tokens_ends_the_text() -> None:
    def fails(name: str) -> Callable[[int], bool]:
        def ends(token: int) -> bool:
            if token == 22:
                raise KeyError(name)
            return False

        return ends

    with CPU.in_use():
        events = ended(limit=9, constraint=Allowed(force=always), ends=fails("x"))
    assert tokens(events)[1:] == [20, 21]
    assert events[-1].finish_reason == "error" and "x" in str(events[-1].error)


def test_a_constraint_needs_end_tokens() -> None:
    with pytest.raises(ValueError, match="ignore_eos with a constraint"):
        Request([1], 2, constraint=Allowed(), end_tokens=[3], ignore_eos=True)
