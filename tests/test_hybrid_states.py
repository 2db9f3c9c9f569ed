"""Hybrid models with all that keeps sequences: the engine, conversations that go back, caches in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE, Backend
from divergence import MAX_KL, kl, log_softmax
from engines import differs, run, tokens

import mlx_ferrum
from mlx_ferrum import saved
from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.generate import generate_step
from mlx_ferrum.generate.prompt import PromptCache
from mlx_ferrum.state import recurrent
from mlx_ferrum.state.recurrent import RecurrentState

SIZES = random_models.Sizes(
    layers=2, context=512, experts=4, used=2, shared_ffn=64, delta=random_models.Delta(2, 4, 32)
)


pytestmark = pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str, indirect=True)


@pytest.fixture
def model(backend: Backend, tmp_path: Path) -> Any:
    path = tmp_path / "m.gguf"
    random_models.write(path, "qwen35moe", seed=5, sizes=SIZES, types=("Q8_0", "Q5_0"))
    return mlx_ferrum.load(path)[0]


def drawn(seed: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 250, n).tolist() for n in lengths]


def made(model: Any, prompt: list[int], count: int, held: PromptCache | None = None) -> list[int]:
    """Greedy tokens after a prompt, which a cache may have begun to read."""
    rest = prompt if held is None else held.start(prompt)
    cache = None if held is None else held.cache
    return [t for t, _ in generate_step(rest, model, max_tokens=count, cache=cache)]


@pytest.mark.parametrize(("blocks", "slots"), [(None, None), (40, 9), (14, 8)])
def test_texts_of_the_engine_are_as_alone(model: Any, blocks: int | None, slots: int) -> None:
    """With prefixes in common, forks, and so few slots that texts are preempted and read again."""
    start, *rests = drawn(1, 70, 3, 20, 31, 1, 44)
    engine = Engine(model, blocks=blocks, slots=slots, chunk=64, chunk_beside=32)
    known = {engine.submit(Request(start + rest, 10))[0]: start + rest for rest in rests}
    known |= dict.fromkeys(engine.submit(Request(start + rests[1], 8), n=3), start + rests[1])
    for id, events in run(engine).items():
        assert len(events) in (8, 10)
        differs(model, known[id], tokens(events))
    assert engine.stats().hits >= 64 * 3, "snapshots at the end of the prefix are found"


def test_too_few_slots_are_refused_at_once(model: Any) -> None:
    engine = Engine(model, blocks=40, slots=3)
    with pytest.raises(ValueError, match="need 4 slots of recurrent states, the pool has 3"):
        engine.submit(Request([1, 2, 3], 8))


def test_going_back_reads_at_most_a_turn_again(model: Any) -> None:
    """As /undo and /retry of a chat do."""
    held, text, turns = PromptCache(model), list[int](), list[list[int]]()
    for question in drawn(2, 45, 33, 61, 40):
        turns.append(text)
        text = text + question
        reply = made(model, text, 12, held)
        assert not differs(model, text, reply)
        text = text + reply
    undone = turns[-1] + drawn(3, 25)[0]
    rest = held.start(undone)
    assert len(rest) <= 25 + 1, "only what is new, and the last token before it"
    assert not differs(model, undone, made(model, undone, 12, held))
    assert len(held.start(undone)) <= 32, "asked again: no more than a block"
    assert not differs(model, undone, made(model, undone, 12, held))
    assert len(held.start(text[:50])) <= 50
    assert not differs(model, text[:50], made(model, text[:50], 12, held))


def test_a_cache_file_goes_on_and_back(model: Any, tmp_path: Path) -> None:
    (prompt,) = drawn(4, 75)
    held = PromptCache(model)
    reply = made(model, prompt, 9, held)
    held.save(tmp_path / "a.cache")
    longer = [*prompt, *reply, 3, 4, 5]
    for wanted, most in ((longer, 5), (prompt, 32)):
        again = PromptCache.load(tmp_path / "a.cache", model)
        assert len(again.start(wanted)) <= most
        assert not differs(model, wanted, made(model, wanted, 8, again))


@pytest.mark.parametrize("states", ["[]", "[3]", "[83, 64]", "[0, 83]", "[1, 2, 3, 83]", "[true]"])
def test_cache_files_with_other_states_are_refused(model: Any, tmp_path: Path, states: str) -> None:
    (prompt,) = drawn(4, 75)
    held = PromptCache(model)
    made(model, prompt, 9, held)
    held.save(tmp_path / "a.cache")
    loaded: Any = mx.load(str(tmp_path / "a.cache"), format="safetensors", return_metadata=True)
    arrays, metadata = loaded
    mx.save_safetensors(str(tmp_path / "b"), arrays, metadata | {"states": states})
    with pytest.raises(ValueError, match=r"expected (states at|the positions of states)"):
        saved.load(tmp_path / "b.safetensors", model)


def test_a_fork_copies_nothing(model: Any) -> None:
    cache = model.make_cache()
    model(mx.array(drawn(5, 20)), cache=cache)
    before = cache.nbytes
    forks = [cache.fork() for _ in range(3)]
    assert cache.nbytes == before
    found = [np.array(model(mx.array([[7, 8]]), cache=each)) for each in [*forks, cache]]
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def test_an_interrupted_pass_is_made_again(model: Any) -> None:
    """The states that it has begun to write are not those that it reads."""
    (prompt,) = drawn(6, 40)
    cache, whole = model.make_cache(), np.array(model(mx.array([prompt])))
    model(mx.array([prompt[:25]]), cache=cache)
    layer = model.body.layers[1]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    layer.mlp, mlp = stop, layer.mlp
    with pytest.raises(KeyboardInterrupt):
        model(mx.array([prompt[25:]]), cache=cache)
    layer.mlp = mlp
    found = np.array(model(mx.array([prompt[25:]]), cache=cache))
    assert kl(log_softmax(whole[0, 25:]), log_softmax(found[0])).max() < 1e-5


@pytest.mark.parametrize("name", ["columns", "matrices"])
def test_scrambled_states_are_noticed(model: Any, name: str) -> None:
    """That is, the states matter to what the tests of logits compare."""
    (prompt,) = drawn(7, 40)
    whole = np.array(model(mx.array([prompt])))[0, -1]
    cache = model.make_cache()
    model(mx.array([prompt[:-1]]), cache=cache)
    (state,) = [group for group in cache.states.groups if isinstance(group, RecurrentState)]
    for storage in state.storages.values():
        held = getattr(storage, name)
        held[:] = held[:, ::-1] if isinstance(held, np.ndarray) else held[:, ::-1] + 0
    found = np.array(model(mx.array([prompt[-1:]]), cache=cache))[0, -1]
    assert kl(log_softmax(whole), log_softmax(found)) > 10 * MAX_KL


def test_snapshots_are_bounded(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache whose states take much holds few of them, however long the text."""
    sizes = random_models.Sizes(layers=2, context=4096, delta=random_models.Delta(2, 4, 32))
    path = random_models.write(tmp_path / "m.gguf", "qwen35", 5, sizes=sizes, types=("Q8_0",))
    model = mlx_ferrum.load(path)[0]
    cache = model.make_cache()
    kind: Any = model.body.keeps[0]
    monkeypatch.setattr(recurrent, "KEPT", 7 * kind.nbytes)
    (state,) = [g for g in cache.start().groups if isinstance(g, RecurrentState)]
    for chunk in drawn(8, *[32] * 20):
        model(mx.array([chunk]), cache=cache)
    assert state.pool.capacity <= 7
    assert cache.rewind(500) >= 250
