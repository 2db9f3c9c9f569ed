"""Experts that are read from disk for a GPU: the same bits as mapped, by kernels that get slots instead of experts."""

from __future__ import annotations

import errno
import random
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import METAL
from msl import metal_on_cpu
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
from mlx_ferrum.backends import metal
from mlx_ferrum.convert.command import main
from mlx_ferrum.kernels.cpu import native

USED = 2  # experts of a token of tiny-moe
LENGTHS = (34, 10, 6, 1, 1, 1)  # tokens of a pass: each is for another kernel


@pytest.fixture(scope="module", autouse=True)
def in_use() -> Any:
    with METAL.in_use():
        yield


@pytest.fixture(scope="module")
def mapped() -> Any:
    return mlx_ferrum.load("tiny-moe")[0]


@pytest.fixture(scope="module")
def ids(mapped: Any) -> np.ndarray:
    return np.random.default_rng(3).integers(0, mapped.args.vocab_size, sum(LENGTHS))


def said(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits of passes of LENGTHS."""
    cache, ends = model.make_cache(), np.cumsum(LENGTHS)
    parts = np.split(ids, ends[:-1])
    return np.concatenate([np.array(model(mx.array(part[None]), cache)[0]) for part in parts])


@pytest.fixture(scope="module")
def wanted(mapped: Any, ids: np.ndarray) -> np.ndarray:
    return said(mapped, ids)


@pytest.mark.parametrize("each", [USED, 2.6, 5, 7.5, 100])
def test_logits_are_those_of_the_mapped_file(
    mapped: Any, ids: np.ndarray, wanted: np.ndarray, each: float
) -> None:
    model = streamed(mapped, each)
    for _ in range(2):
        np.testing.assert_array_equal(said(model, ids), wanted)
    layers = len(mapped.body.layers)
    whole = sum(layer.first.is_whole for layer in model.streams.layers)
    assert whole == (layers if each >= COUNT else layers // 2 if each == 7.5 else 0)
    passes = 2 * len(LENGTHS)
    if each >= COUNT:  # the choice is waited for until all experts are there
        assert model.streams.waits <= layers * len(LENGTHS)
    else:
        assert (layers - whole) * passes <= model.streams.waits <= layers * passes
    for count in (count for layer in model.streams.layers for count in layer.counts()):
        assert count.used >= count.read > 0


def test_packed_files(mapped: Any, ids: np.ndarray, wanted: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "packed.gguf"
    assert main(["pack", "tiny-moe", str(path)]) == 0
    np.testing.assert_array_equal(said(streamed(mapped, 3, path), ids), wanted)


def test_predictions_are_used_and_change_nothing(mapped: Any) -> None:
    text = np.random.default_rng(4).integers(0, mapped.args.vocab_size, 20)
    before = logits(mapped, text, 14)
    model = streamed(mapped, 4)
    np.testing.assert_array_equal(logits(model, text, 14), before)
    assert model.streams.counts().useful > 0
    model = streamed(mapped, 4)
    model.streams.predict(False)
    np.testing.assert_array_equal(logits(model, text, 14), before)
    assert not model.streams.counts().judged


def test_slots_hold_what_the_kernels_were_told(
    mapped: Any, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each launch gets numbers of slots, whose bytes are those of the experts that the router chose."""
    chosen: list[np.ndarray] = []
    asked = metal.resident._portions

    def portions(stream: Any, ids: np.ndarray) -> Any:
        sources = {(w.stream[0], w.stream[1]): w for w in stacks}
        missing = set(np.unique(ids).tolist())
        for held in asked(stream, ids):
            assert held.shape == ids.shape and held.max() < stream.slots
            there = held >= 0
            pairs = dict(zip(ids[there].tolist(), held[there].tolist(), strict=True))
            for (of, source), w in sources.items():
                slots = stream.stack(source).reshape(stream.slots, -1) if of is stream else []
                for number, slot in pairs.items() if of is stream else ():
                    np.testing.assert_array_equal(slots[slot], w.matrix(number).data.reshape(-1))
            missing -= pairs.keys()
            chosen.append(held)
            yield held
        assert not missing

    model = streamed(mapped, 3)
    stacks = [
        w for layer in model.body.layers for w in (layer.mlp.gate, layer.mlp.up, layer.mlp.down)
    ]
    monkeypatch.setattr(metal.resident, "_portions", portions)
    said(model, ids)
    assert len(chosen) > 2 * len(LENGTHS) * len(model.body.layers)


def test_nothing_is_read_into_slots_that_a_gpu_computes_from(
    mapped: Any, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = streamed(mapped, 3)
    guards = [layer.first.guard for layer in model.streams.layers]
    run, seen = native.run, set[str]()

    def checked(kind: str, **fields: Any) -> None:
        if kind.endswith(("Experts", "Portion")) or kind == "BeginPortions":
            held = [guard for guard in guards if guard._lock.locked()]
            assert len(held) == 1 and not held[0]._computed
            seen.add(kind)
        run(kind, **fields)

    monkeypatch.setattr(native, "run", checked)
    said(model, ids)
    assert seen == {"WantExperts", "ExpectExperts", "BeginPortions", "NextPortion"}


def test_no_kernel_reads_what_it_should_not(mapped: Any, ids: np.ndarray) -> None:
    model = streamed(mapped, 3)
    for seed in (1, 2):
        with metal_on_cpu(checked=True, seed=seed) as host:
            cache = model.make_cache()
            for part in (ids[:9], ids[9:10]):
                mx.eval(model(mx.array(part[None]), cache))
        assert not host.findings, "\n".join(map(str, host.findings))


def test_an_id_that_is_no_expert_is_nan(mapped: Any) -> None:
    mlp = streamed(mapped, 3).body.layers[0].mlp
    x = mx.ones((2, 1, mlp.gate.shape[2]))
    for ids, is_nan in (
        ([[[8, -1]], [[8, 9]]], [True, True]),
        ([[[0, 1]], [[8, 0]]], [False, True]),
    ):
        chosen, weights = mx.array(ids), mx.ones((2, 1, 2))
        inner = metal.gather_gate_up(x, mlp.gate, mlp.up, chosen, "silu")
        found = np.array(metal.gather_down(inner, mlp.down, chosen, weights))
        np.testing.assert_array_equal(np.isnan(found).all(-1).ravel(), is_nan)


def test_texts_of_an_engine(mapped: Any) -> None:
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, mapped.args.vocab_size, n).tolist() for n in (3, 9, 1)]
    assert texts(streamed(mapped, 3), prompts, 5) == texts(mapped, prompts, 5)


def test_two_threads_at_a_time(mapped: Any) -> None:
    ids = np.random.default_rng(6).integers(0, mapped.args.vocab_size, (2, 7))
    check_two_threads(streamed(mapped, 2), mapped, ids, 5)


def test_slow_and_failing_reads(mapped: Any, ids: np.ndarray, wanted: np.ndarray) -> None:
    draw, failed = random.Random(7), 0

    def slow(file: int, to: int, size: int, at: int) -> int:
        time.sleep(draw.random() / 500)
        return read_some(file, to, max(1, int(size * draw.random())), at)

    def failing(file: int, to: int, size: int, at: int) -> int:
        return -errno.EIO if draw.random() < 0.05 else read_some(file, to, size, at)

    model = streamed(mapped, 3)
    with reading(slow):
        np.testing.assert_array_equal(said(model, ids), wanted)
    with reading(failing):
        for _ in range(5):
            try:
                found = said(model, ids)
            except OSError as error:
                assert "of an expert at byte" in str(error) and "Input/output error" in str(error)
                failed += 1
            else:
                np.testing.assert_array_equal(found, wanted)
    assert failed
    np.testing.assert_array_equal(said(model, ids), wanted)


def test_the_experts_of_a_token_have_to_fit(mapped: Any) -> None:
    with pytest.raises(ValueError, match=f"for experts, expected at least .*: {USED} a layer"):
        streamed(mapped, USED - 0.1)
