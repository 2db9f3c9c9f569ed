"""Experts that are read from the file when they are chosen: the same bits as mapped, whatever fits in memory."""

from __future__ import annotations

import errno
import gc
import json
import random
import re
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import CPU, REFERENCE, Backend
from streamed_models import (
    COUNT,
    check_two_threads,
    logits,
    read_some,
    reading,
    streamed,
    texts,
)

import mlx_ferrum
from mlx_ferrum.backends.cpu.experts import want_experts
from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.generate import command
from mlx_ferrum.kernels.cpu.streams import Source, Stream


@pytest.fixture(scope="module")
def mapped() -> Any:
    with CPU.in_use():
        return mlx_ferrum.load("tiny-moe")[0]


def open_files() -> int:
    folder = Path("/dev/fd" if sys.platform == "darwin" else "/proc/self/fd")
    return len(list(folder.iterdir()))


@pytest.mark.parametrize("each", [1, 1.6, 2, 3, 5, 7.5, COUNT, 100])
def test_logits_are_those_of_the_mapped_file(cpu: Backend, mapped: Any, each: float) -> None:
    rng = np.random.default_rng(int(each * 10))
    ids = rng.integers(0, mapped.args.vocab_size, 70)
    model = streamed(mapped, each)
    np.testing.assert_array_equal(logits(model, ids, 20), logits(mapped, ids, 20))
    counts = [count for layer in model.streams.layers for count in layer.counts()]
    assert len(counts) == 2 * len(mapped.body.layers)
    for count in counts:
        assert count.used >= count.read > 0
        assert count.nbytes > 0
        if each >= COUNT:
            assert count.read <= COUNT
    slots = [layer.first.slots for layer in model.streams.layers]
    assert slots[-1] == min(int(each), COUNT) and slots[0] - slots[-1] in (0, 1)


def test_any_order_of_eviction(cpu: Backend, mapped: Any) -> None:
    """Texts before have left other experts in the slots, in another order: other ones are read, and evicted."""
    vocabulary, orders = mapped.args.vocab_size, set[tuple[int, ...]]()
    ids = np.random.default_rng(9).integers(0, vocabulary, 50)
    wanted = logits(mapped, ids, 30)
    for seed in range(3):
        model, read = streamed(mapped, 3), list[int]()
        model.streams.predict(False)  # so that what is read depends on the slots only

        def noting(file: int, to: int, size: int, at: int, read: list[int] = read) -> int:
            read.append(at)
            return read_some(file, to, size, at)

        logits(model, np.random.default_rng(seed).integers(0, vocabulary, 60), 40)
        with reading(noting):
            np.testing.assert_array_equal(logits(model, ids, 30), wanted)
        orders.add(tuple(sorted(read)))
    assert len(orders) == 3


def test_recorded_steps_of_several_texts(cpu: Backend, mapped: Any) -> None:
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, mapped.args.vocab_size, n).tolist() for n in (3, 40, 17, 1)]
    wanted = texts(mapped, prompts, 24)
    for each in (1, 3, 6):
        assert texts(streamed(mapped, each), prompts, 24) == wanted


def test_two_threads_at_a_time(cpu: Backend, mapped: Any) -> None:
    ids = np.random.default_rng(6).integers(0, mapped.args.vocab_size, (2, 30))
    check_two_threads(streamed(mapped, 2), mapped, ids, 20)


def test_slow_and_short_reads_change_nothing(cpu: Backend, mapped: Any) -> None:
    ids = np.random.default_rng(7).integers(0, mapped.args.vocab_size, 40)
    draw = random.Random(7)

    def slow(file: int, to: int, size: int, at: int) -> int:
        time.sleep(draw.random() / 500)
        whole = (
            -(-max(4096, int(size * draw.random())) // 4096) * 4096
        )  # direct reads take whole sectors
        return read_some(file, to, min(size, whole), at)

    model = streamed(mapped, 3)
    with reading(slow):
        found = logits(model, ids, 15)
    np.testing.assert_array_equal(found, logits(mapped, ids, 15))


@pytest.mark.parametrize("each", [2, 5])
def test_a_failing_read_is_an_error_and_the_next_one_is_right(
    cpu: Backend, mapped: Any, each: int
) -> None:
    ids = np.random.default_rng(8).integers(0, mapped.args.vocab_size, 40)
    draw, failed = random.Random(8), 0

    def failing(file: int, to: int, size: int, at: int) -> int:
        return -errno.EIO if draw.random() < 0.1 else read_some(file, to, size, at)

    model = streamed(mapped, each)
    with reading(failing):
        for _ in range(12):
            try:
                found = logits(model, ids, 10)
            except OSError as error:
                assert "of an expert at byte" in str(error) and "Input/output error" in str(error)
                failed += 1
            else:
                np.testing.assert_array_equal(found, logits(mapped, ids, 10))
    assert failed
    np.testing.assert_array_equal(logits(model, ids, 10), logits(mapped, ids, 10))


def test_the_file_ends_early(cpu: Backend, mapped: Any) -> None:
    model = streamed(mapped, 2)
    with reading(lambda *_: 0), pytest.raises(OSError, match="the file ends there"):
        logits(model, np.arange(9), 1)


def answers(model: Any, prompts: list[list[int]]) -> list[tuple[list[int], Exception | None]]:
    """What an engine says to all of them at once: tokens, and the error that ended a text."""
    engine = Engine(model)
    ids = [engine.submit(Request(prompt, 3))[0] for prompt in prompts]
    found: dict[int, tuple[list[int], list[Exception | None]]] = {id: ([], [None]) for id in ids}
    while engine.is_busy:
        for event in engine.step():
            tokens, errors = found[event.id]
            tokens += [] if event.token is None else [event.token]
            errors[0] = event.error
    return [(tokens, errors[0]) for tokens, errors in found.values()]


def test_only_the_texts_end_whose_experts_cannot_be_read(cpu: Backend, mapped: Any) -> None:
    prompts = [[40], [300], [7], [90]]
    places: list[set[int]] = []

    def noting(file: int, to: int, size: int, at: int) -> int:
        places[-1].add(at)
        return read_some(file, to, size, at)

    alone = []
    for prompt in prompts:
        places.append(set())
        model = streamed(mapped, 4)
        model.streams.predict(False)  # so that only what is needed is read
        with reading(noting):
            alone += answers(model, [prompt])
    # what some of them need: it cannot be read when all are asked at once
    bad = next(at for at in sorted(set.union(*places)) if sum(at in each for each in places) == 2)

    def failing(file: int, to: int, size: int, at: int) -> int:
        return -errno.EIO if at == bad else read_some(file, to, size, at)

    with reading(failing):
        together = answers(streamed(mapped, 4), prompts)
    for (tokens, error), (wanted, _), needs in zip(together, alone, places, strict=True):
        if bad in needs:
            assert isinstance(error, OSError)
            assert tokens == wanted[: len(tokens)]
        else:
            assert error is None and tokens == wanted


def test_refusals(cpu: Backend, mapped: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for experts, expected at least"):
        streamed(mapped, 0.9)
    with pytest.raises(ValueError, match="the model has no experts"):
        mlx_ferrum.load("tiny-hybrid", expert_memory=1 << 20)
    with (
        REFERENCE.in_use(),
        pytest.raises(NotImplementedError, match="on the backends cpu and metal"),
    ):
        streamed(mapped, 2)


def test_nothing_is_left_of_a_model_that_is_gone(cpu: Backend, mapped: Any) -> None:
    before = open_files()
    for _ in range(3):
        model = streamed(mapped, 2)
        logits(model, np.arange(9), 1)
        del model
        gc.collect()
    assert open_files() <= before


def test_slots_are_freed_with_the_model(cpu: Backend, mapped: Any) -> None:
    """At once: the garbage collector does not know how much memory they take."""
    model = streamed(mapped, 4)
    logits(model, np.arange(9), 1)
    streams = [weakref.ref(each) for layer in model.streams.layers for each in layer[1:]]
    gc.collect()
    gc.disable()
    try:
        del model
        assert [each() for each in streams] == [None] * len(streams)
    finally:
        gc.enable()


def test_an_error_is_not_told_to_the_next_text(cpu: Backend, mapped: Any) -> None:
    """What a text began to read before it failed may fail later; others read it again."""
    model, ids, condition = streamed(mapped, 4), np.arange(1), threading.Condition()
    matrices = 3 * model.body.layers[0].mlp.routing.used
    seen = set[int]()

    def failing(file: int, to: int, size: int, at: int) -> int:
        with condition:
            seen.add(at)
            condition.notify()
        return -errno.EIO

    with reading(failing):
        with pytest.raises(OSError, match="Input/output error"):
            logits(model, ids, 0)
        with condition:
            assert condition.wait_for(lambda: len(seen) >= matrices, 60)
    np.testing.assert_array_equal(logits(model, ids, 0), logits(mapped, ids, 0))


def test_an_error_of_what_is_not_used_is_told_to_nobody(cpu: Backend, mapped: Any) -> None:
    """Its read began, but the text was cancelled before the product."""
    model, ids = streamed(mapped, 4), np.arange(1)
    mlp, chosen = model.body.layers[0].mlp, set[int]()
    mlp.observer = lambda _logits, ids, _weights: chosen.update(np.asarray(ids).ravel().tolist())
    wanted = logits(mapped, ids, 0)
    logits(model, ids, 0)
    mlp.observer = None
    others = np.array([e for e in range(COUNT) if e not in chosen][:2], np.int32)
    calls, condition = [0], threading.Condition()

    def failing(file: int, to: int, size: int, at: int) -> int:
        with condition:
            calls[0] += 1
            condition.notify()
        return -errno.EIO

    with reading(failing):
        want_experts(mlp.gate, others[None])
        with condition:
            assert condition.wait_for(lambda: calls[0] >= 3 * len(others), 60)
    np.testing.assert_array_equal(logits(model, ids, 0), wanted)


def test_the_command_says_what_was_read(cpu: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "tiny-moe", "--max-tokens", "6", "--backend", "cpu"]
    assert command.main(options) == 0
    wanted, about = capsys.readouterr()
    assert "experts:" not in about
    assert command.main([*options, "--expert-memory", "1MB"]) == 0
    text, about = capsys.readouterr()
    assert text == wanted
    assert re.search(r"experts: \d+% of \d+ uses found in memory, .* MB read from disk", about)
    assert command.main([*options, "--expert-memory", "1MB", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["experts"]
    assert counts["used"] > counts["read"] > 0
    assert command.main([*options, "--expert-memory", "100kB"]) == 1
    assert "100 kB for experts, expected at least" in capsys.readouterr().err


def test_no_memory_for_the_slots(cpu: Backend) -> None:
    source = Source(0, 0, 10**12, False, 10**12)
    with pytest.raises(MemoryError, match=f"no memory for 1000 experts, {10**15} bytes in all"):
        Stream(1000, 1000, [source], 1 / 256, None)
