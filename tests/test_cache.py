"""A Cache: chunks, windows, going back and forks give what one pass over everything gives."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE, Backend
from random_models import GEMMA_WINDOW, Sizes

import mlx_ferrum
from mlx_ferrum import cache as caches
from mlx_ferrum import ops
from mlx_ferrum.cache import Cache
from mlx_ferrum.state.kinds import KV
from mlx_ferrum.state.model import ModelStates

SMALL = Sizes(hidden=64, ffn=128, layers=3, heads=2, kv_heads=1, head_dim=32, context=4096)
WINDOW = GEMMA_WINDOW["attention.sliding_window"]
KINDS: dict[str, dict[str, Any]] = {
    "full": {"arch": "llama", "types": ["F32"]},
    "window": {"arch": "gemma3", "types": ["F32"], "metadata": GEMMA_WINDOW},
    "windows only": {
        "arch": "gemma3",
        "types": ["F32"],
        "metadata": {**GEMMA_WINDOW, "attention.sliding_window_pattern": 0},
    },
}
CUTS = [[0, 90], [0, 1, 2, 3, 90], [0, *range(31, 91)], [0, 30, 32, 33, 64, 90]]


@pytest.fixture(params=[REFERENCE, CPU], ids=str)
def each_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with request.param.in_use() as backend:
        yield backend


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cache")
    return {
        name: random_models.write(folder / f"{name}.gguf", seed=3, sizes=SMALL, **kind)
        for name, kind in KINDS.items()
    }


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, files: dict[str, Path], each_backend: Backend) -> Any:
    return mlx_ferrum.load(files[request.param])[0]


def random_ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 250, count).tolist()


def logits(model: Any, ids: Sequence[int], cache: Cache | None = None) -> np.ndarray:
    return np.array(model(mx.array([list(ids)]), cache=cache))[0]


def close(found: np.ndarray, wanted: np.ndarray, backend: Backend) -> bool:
    return float(np.abs(found - wanted).max()) < backend.pieces


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: str(cuts[:6]))
def test_chunks_equal_one_pass(model: Any, cuts: list[int], each_backend: Backend) -> None:
    ids, cache = random_ids(90, seed=1), model.make_cache()
    found = [logits(model, ids[a:b], cache) for a, b in itertools.pairwise(cuts)]
    assert close(np.concatenate(found), logits(model, ids), each_backend)
    assert cache.tokens == ids and cache.offset == 90


@pytest.mark.parametrize("slack", [0, 5, 40])
@pytest.mark.parametrize("to", [0, 31, 32, 64, 85, 95, 99, 100])
def test_going_back(
    model: Any, to: int, slack: int, each_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position reached is said; what is computed from there on is right, also where a window is gone."""
    monkeypatch.setattr(caches, "SLACK", slack)
    ids, other, cache = random_ids(100, seed=2), random_ids(130, seed=3), model.make_cache()
    for a, b in itertools.pairwise([0, 40, *range(45, 101, 5)]):
        logits(model, ids[a:b], cache)
    reached = cache.rewind(to)
    assert reached == cache.offset <= to and cache.tokens == ids[:reached]
    if to >= 100 - slack or all(keeps.window is None for keeps in cache.keeps):
        assert reached == to
    text = [*ids[:to], *other[to:]]
    found = logits(model, text[reached:], cache)
    assert close(found, logits(model, text)[reached:], each_backend)


def test_a_window_frees_blocks_behind_it(each_backend: Backend, files: dict[str, Path]) -> None:
    model = mlx_ferrum.load(files["windows only"])[0]
    cache = model.make_cache()
    ids = random_ids(1500, seed=4)
    for start in range(0, 1500, 100):
        logits(model, ids[start : start + 100], cache)
    assert cache.states is not None
    (group,) = cache.states.groups
    assert group.pool.capacity <= -(-(caches.SLACK + WINDOW + 100) // 32) + 2
    assert close(logits(model, [7], cache), logits(model, [*ids, 7])[-1:], each_backend)


def test_what_cannot_be_gone_back_to_is_refused(model: Any) -> None:
    cache = model.make_cache()
    logits(model, [1, 2, 3], cache)
    for position in (-1, 4):
        with pytest.raises(ValueError, match=f"rewind to {position}, expected 0 to 3"):
            cache.rewind(position)
    assert cache.offset == 3


def test_sequences_of_a_cache_go_back_to_one_position(
    each_backend: Backend, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the second one could reach more than the first."""
    monkeypatch.setattr(caches, "SLACK", 0)
    model = mlx_ferrum.load(files["window"])[0]
    rows = np.array([random_ids(100, seed=5), random_ids(100, seed=6)])
    for far in (0, 1):
        cache = model.make_cache()
        for a, b in itertools.pairwise([0, 40, *range(45, 101, 5)]):
            model(mx.array(rows[:, a:b]), cache=cache)
        assert cache.states is not None
        rewind = cache.states.rewind
        farther = cache.sequences[far]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                cache.states,
                "rewind",
                lambda s, p, rewind=rewind, farther=farther: rewind(
                    s, p if s is farther else min(p, 32)
                ),
            )
            reached = cache.rewind(99)
        assert [s.position for s in cache.sequences] == [reached] * 2
        found = np.array(model(mx.array(rows[:, reached:]), cache=cache))
        assert close(found, np.array(model(mx.array(rows)))[:, reached:], each_backend)


@pytest.mark.parametrize("ahead", [0, 1])
def test_sequences_that_an_interruption_left_apart_go_on_together(model: Any, ahead: int) -> None:
    rows = np.array([random_ids(42, seed=7), random_ids(42, seed=8)])
    whole = np.array(model(mx.array(rows)))
    cache = model.make_cache()
    model(mx.array(rows[:, :40]), cache=cache)
    batch = cache.batch(rows[:, 40:41])
    assert cache.states is not None
    cache.states.advance(cache.sequences[ahead], 1, batch.tokens[ahead : ahead + 1].tolist())
    assert cache.offset == 40
    found = np.array(model(mx.array(rows[:, 40:]), cache=cache))
    assert [sequence.position for sequence in cache.sequences] == [42, 42]
    assert np.allclose(found, whole[:, 40:], atol=1e-3)


@pytest.mark.parametrize("copied", [Cache.fork, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("at", [5, 31, 32, 40, 64])
def test_a_fork_and_its_source_go_on_as_if_alone(
    model: Any, at: int, copied: Callable[[Cache], Cache], each_backend: Backend
) -> None:
    ids, cache = random_ids(at, seed=7), model.make_cache()
    logits(model, ids, cache)
    fork = copied(cache)
    first, second = random_ids(40, seed=8), random_ids(40, seed=9)
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for a, b in itertools.pairwise([0, 1, 2, 20, 40]):
        found[0].append(logits(model, first[a:b], cache))
        found[1].append(logits(model, second[a:b], fork))
    for n, rest in enumerate((first, second)):
        wanted = logits(model, [*ids, *rest])[at:]
        assert close(np.concatenate(found[n]), wanted, each_backend)
    assert (cache.tokens, fork.tokens) == ([*ids, *first], [*ids, *second])


def test_forks_that_nobody_holds_give_their_blocks_back(model: Any, each_backend: Backend) -> None:
    """And the blocks of one are not taken for those of the next, whatever its identity."""
    ids, cache = random_ids(40, seed=10), model.make_cache()
    logits(model, ids, cache)
    sizes = []
    for n in range(30):
        found = logits(model, [n, n + 1], cache.fork())
        assert close(found, logits(model, [*ids, n, n + 1])[40:], each_backend), n
        sizes.append(cache.nbytes)
    assert sizes[-1] == sizes[0]


def test_ended_sequences_are_not_taken_for_new_ones(model: Any, each_backend: Backend) -> None:
    states = ModelStates(model.body.keeps, ops.allocate, block=4)
    for n in range(20):
        ids = random_ids(5, seed=n)
        sequence = states.begin(ids)
        batch = states.batch([(sequence, 5)], np.array(ids))
        found = np.array(model.scores(batch.last(model.body(batch))))
        batch.advance()
        states.free(sequence)
        del sequence, batch
        assert close(found, logits(model, ids)[-1:], each_backend), n


def test_rows_that_are_no_batch_are_refused(model: Any) -> None:
    states = ModelStates(model.body.keeps, ops.allocate)
    one, two = states.begin(), states.begin()
    for rows in ([(one, 2), (two, 0)], [(one, 1), (two, 2)], [(one, 2), (two, -1)], []):
        with pytest.raises(ValueError, match=r"2 tokens for .* rows, expected one each"):
            states.batch(rows, np.array([1, 2]))
    assert one.position == two.position == 0 and states.nbytes == 0


def test_a_cache_of_another_model_or_batch_is_refused(
    each_backend: Backend, files: dict[str, Path]
) -> None:
    model, other = (mlx_ferrum.load(files[name])[0] for name in ("full", "window"))
    with pytest.raises(ValueError, match="the cache is of another model: it has 3 layers"):
        logits(model, [1], other.make_cache())
    given: list[Any] = [[], "text", 5]
    for wrong in given:
        with pytest.raises(ValueError, match=r"expected what model\.make_cache\(\) gives"):
            logits(model, [1], wrong)
    cache = model.make_cache()
    with pytest.raises(ValueError, match="row ids"):
        model(mx.array([[1], [999]]), cache=cache)
    logits(model, [1, 2], cache)
    with pytest.raises(ValueError, match="holds 1 sequences, expected 2"):
        model(mx.array([[1], [2]]), cache=cache)
    assert cache.rewind(0) == 0
    model(mx.array([[1], [2]]), cache=cache)
    assert len(cache.sequences) == 2 and cache.offset == 1


def test_a_cache_of_another_backend_is_refused(files: dict[str, Path]) -> None:
    model = mlx_ferrum.load(files["full"])[0]
    cache = model.make_cache()
    with CPU.in_use():
        logits(model, [1, 2], cache)
    message = "the cache was made by the cpu backend, reference is in use"
    with REFERENCE.in_use(), pytest.raises(ValueError, match=message):
        logits(model, [1], cache)


def test_bits_of_a_cache(model: Any) -> None:
    with pytest.raises(ValueError, match="bits is 4, expected 8 or 16"):
        model.make_cache(kv_bits=4)
    narrow, wide = model.make_cache(kv_bits=8), model.make_cache()
    for cache in (narrow, wide):
        logits(model, random_ids(20, seed=1), cache)
    assert narrow.nbytes < wide.nbytes
    assert {keeps.bits for keeps in narrow.keeps} == {8} != {KV(1, 1, 1).bits}


@pytest.mark.parametrize("position", [1.0, True, None, "1"])
def test_rewind_takes_whole_numbers_only(files: Any, position: Any) -> None:
    model = mlx_ferrum.load(files["full"])[0]
    cache = model.make_cache()
    logits(model, [1, 2, 3], cache)
    with pytest.raises(ValueError, match="expected a whole number"):
        cache.rewind(position)
    assert cache.offset == 3 and cache.rewind(np.int64(2)) == 2


def test_an_interrupted_growth_is_finished_by_the_next_batch() -> None:
    """Layers whose storage was not made yet must not be written to."""
    made = 0

    def allocate(shape: tuple[int, ...], bits: int) -> np.ndarray:
        nonlocal made
        made += 1
        if made == 4:  # of the second layer
            raise KeyboardInterrupt
        return np.zeros(shape, np.float16)

    states = ModelStates([KV(1, 4, 4)] * 3, allocate)
    rows = [(states.begin(), 2)]
    with pytest.raises(KeyboardInterrupt):
        states.batch(rows, np.arange(2))
    batch = states.batch(rows, np.arange(2))
    for i in range(3):
        at = batch.layer(i)
        assert at.storage.blocks > 0
        assert at.paging.slots.max() < at.storage.blocks * at.storage.size
