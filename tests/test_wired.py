"""The wired limit around generation on Metal, by an MLX that notes what it is asked; and no limit elsewhere."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import mlx.core as mx
import pytest
from backends import CPU, REFERENCE
from fakes import FakeModel, byte_tokenizer

import mlx_ferrum
from mlx_ferrum import ops
from mlx_ferrum.doctor import choice
from mlx_ferrum.generate import generate_step, stream_generate

BEFORE, LIMIT = 123, 48 << 30
PROMPT = [5, 9, 3]


class Limit:
    """The limit, and what was asked in its order."""

    def __init__(self) -> None:
        self.now = BEFORE
        self.asked: list[Any] = []

    def set(self, limit: int) -> int:
        before, self.now = self.now, limit
        self.asked.append(limit)
        return before

    def synchronize(self) -> None:
        self.asked.append("synchronize")


@pytest.fixture
def limit(monkeypatch):
    """Of the metal backend, in use on a machine with an Apple GPU."""
    found = Limit()
    monkeypatch.setattr(mx, "set_wired_limit", found.set)
    monkeypatch.setattr(mx, "synchronize", found.synchronize)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    info = {"max_recommended_working_set_size": LIMIT}
    monkeypatch.setattr(mx, "device_info", lambda device: info)
    with REFERENCE.in_use():
        ops.use_backend("metal")
        yield found
    assert found.now == BEFORE


def steps(model: Any = None, count: int = 4) -> Any:
    given: Any = model or FakeModel()
    return generate_step(PROMPT, given, max_tokens=count)


def test_it_is_set_while_a_model_generates(limit):
    running = steps()
    assert limit.asked == [], "nothing runs yet"
    for _ in running:
        assert limit.now == LIMIT
    assert limit.asked == [LIMIT, "synchronize", BEFORE]


def test_it_is_restored_when_generation_is_left_early(limit):
    running = steps()
    next(running)
    running.close()
    assert limit.asked == [LIMIT, "synchronize", BEFORE]
    tokenizer: Any = byte_tokenizer()
    model: Any = FakeModel(tokenizer.vocab_size)
    text = stream_generate(model, tokenizer, PROMPT)
    next(text)
    assert limit.now == LIMIT
    del text
    assert limit.asked == [LIMIT, "synchronize", BEFORE] * 2


def test_it_is_restored_when_generation_fails(limit):
    model: Any = FakeModel()
    running = steps(model)
    next(running)
    with pytest.raises(ZeroDivisionError):
        running.throw(ZeroDivisionError())
    assert limit.now == BEFORE
    model.scores = lambda hidden: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(steps(model))
    assert limit.asked == [LIMIT, "synchronize", BEFORE] * 2


def test_it_is_restored_when_the_work_in_flight_fails(limit, monkeypatch):
    def fail() -> None:
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(mx, "synchronize", fail)
    with pytest.raises(RuntimeError, match="gone"):
        list(steps())
    assert limit.asked == [LIMIT, BEFORE]


def test_a_limit_that_is_refused_leaves_nothing_behind(limit, monkeypatch):
    def refuse(limit: int) -> int:
        raise ValueError("larger than the maximum")

    with monkeypatch.context() as patch:
        patch.setattr(mx, "set_wired_limit", refuse)
        with pytest.raises(ValueError, match="maximum"):
            next(steps())
    assert len(list(steps())) == 4
    assert limit.asked == [LIMIT, "synchronize", BEFORE]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_last_of_several_restores_it(limit, order):
    """One within another, one after another, or any way between."""
    running = [steps() for _ in order]
    for one in running:
        next(one)
    for i in order:
        assert limit.now == LIMIT
        running[i].close()
    asked = [x for x in limit.asked if x != "synchronize"]
    assert asked == [LIMIT, BEFORE]


def test_threads_at_once(limit):
    start = threading.Barrier(4)
    low: list[int] = []

    def run() -> None:
        start.wait()
        for _ in range(20):
            low.extend(limit.now for _ in steps() if limit.now != LIMIT)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not low
    changes = [x for x in limit.asked if x != "synchronize"]
    assert changes == [LIMIT, BEFORE] * (len(changes) // 2)


@pytest.mark.parametrize("share, warned", [(0.89, False), (0.91, True)])
def test_a_model_that_hardly_fits_is_named(limit, caplog, share, warned):
    model: Any = FakeModel()
    model.nbytes = int(share * LIMIT)
    list(steps(model))
    said = [record.getMessage() for record in caplog.records]
    wanted = (
        "warning: the model's weights take 46.9 GB, more than 90% of the 51.5 GB that the GPU keeps "
        "resident: generation can be slow"
    )
    assert said == ([wanted] if warned else [])


def test_load_says_how_large_the_weights_are(smollm2_path):
    with CPU.in_use():
        model, _ = mlx_ferrum.load(smollm2_path)
    size = smollm2_path.stat().st_size
    assert 0.97 * size < model.nbytes < size  # the rest is metadata, the vocabulary above all


@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
def test_other_backends_have_none(limit, backend):
    with backend.in_use():
        assert ops.wired_limit() is None
        assert len(list(steps())) == 4
    assert limit.asked == []


def test_a_gpu_that_recommends_nothing_has_none(limit, monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda device: {})
    assert ops.wired_limit() is None


def test_the_doctor_says_it(limit):
    assert choice.choose("metal").wired_limit == LIMIT
    with REFERENCE.in_use():
        assert choice.choose("reference").wired_limit is None
