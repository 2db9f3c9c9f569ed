"""A recorded decode step gives what the model gives, to the last bit, and knows when it does not apply."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from backends import CPU, CPU_PORTABLE

import mlx_ferrum
from mlx_ferrum import cache, ops, profile


@pytest.fixture(params=[CPU, CPU_PORTABLE], ids=str, autouse=True)
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cpu backend in use, and caches that move often."""
    monkeypatch.setattr(cache, "STEP", 16)
    with request.param.in_use():
        yield


class Counted:
    """A model's body, and how often it was called."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, 0

    def __call__(self, tokens: Any, held: list[Any]) -> Any:
        self.calls += 1
        return self.model.body(tokens, held)


def load(folder: Path, case: str) -> Any:
    model, _ = mlx_ferrum.load(random_models.write_case(folder / "m.gguf", case, seed=3))
    return model


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, count).tolist()


def one(token: int) -> Any:
    return np.array([[token]], np.uint32)


def assert_same(
    step: Any, model: Any, held: list[Any], plain: list[Any], tokens: list[int]
) -> None:
    """Each token by `step` over `held` gives what the model gives over `plain`, and leaves the same caches."""
    for i, token in enumerate(tokens):
        found, wanted = step(one(token)), model.body(one(token), plain)
        assert found.tobytes() == np.asarray(wanted).tobytes(), i
    for a, b in zip(held, plain, strict=True):
        assert a.offset == b.offset
        assert all(np.array_equal(x, y) for x, y in zip(a.state, b.state, strict=True))


@pytest.mark.parametrize("case", random_models.CASES)
@pytest.mark.parametrize("prompt", [0, 5])
def test_every_model_is_repeated_to_the_bit(case: str, prompt: int, tmp_path: Path) -> None:
    """Past windows that are full, and storage that grows or shifts."""
    model = load(tmp_path, case)
    body, held, plain = Counted(model), model.make_cache(), model.make_cache()
    step: Any = ops.stepper(body, held)
    for caches in (held, plain):
        if prompt:
            model.body(np.array([random_tokens(prompt)]), caches)
    assert_same(step, model, held, plain, random_tokens(60, seed=1))
    assert body.calls < 30, "most steps are repeated"


def test_biases_of_every_matrix_are_repeated(tmp_path: Path) -> None:
    biases = (*random_models.QKV_BIASES, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    path = random_models.write(tmp_path / "m.gguf", "llama", seed=3, biases=biases)
    model, _ = mlx_ferrum.load(path)
    body, held, plain = Counted(model), model.make_cache(), model.make_cache()
    assert_same(ops.stepper(body, held), model, held, plain, random_tokens(12))
    assert body.calls < 12, "most steps are repeated"


def test_caches_that_were_changed_between_steps(tmp_path: Path) -> None:
    """Trimmed, continued by the model itself, replaced from a file."""
    model = load(tmp_path, "llama")
    held, plain = model.make_cache(), model.make_cache()
    step: Any = ops.stepper(model.body, held)
    assert_same(step, model, held, plain, random_tokens(8))
    for caches in (held, plain):
        assert all(c.trim(3) for c in caches)
    assert_same(step, model, held, plain, random_tokens(4, seed=1))
    for caches in (held, plain):
        assert all(c.trim(8) for c in caches)
    assert_same(step, model, held, plain, random_tokens(4, seed=2))
    for caches in (held, plain):
        model.body(np.array([random_tokens(5)]), caches)
    assert_same(step, model, held, plain, random_tokens(4, seed=3))
    cache.save(tmp_path / "saved", plain, model, random_tokens(plain[0].offset))
    for caches in (held, plain):
        for to, saved in zip(caches, cache.load(tmp_path / "saved", model)[0], strict=True):
            to.restore(saved.state, saved.offset)
    assert_same(step, model, held, plain, random_tokens(8, seed=4))


def test_what_depends_on_more_than_the_calls_is_not_repeated(tmp_path: Path) -> None:
    """Here the position enters outside the library."""
    model = load(tmp_path, "llama")
    held, plain = model.make_cache(), model.make_cache()
    steps = []

    def body(tokens: Any, caches: list[Any]) -> Any:
        steps.append(0)
        return model.body(tokens, caches) * np.float32(1 + caches[0].offset)

    step: Any = ops.stepper(body, held)
    for token in random_tokens(10):
        assert np.array_equal(step(one(token)), body(one(token), plain))
    assert len(steps) == 20


def test_several_tokens_at_once_go_through_the_model(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen3")
    held, plain = model.make_cache(), model.make_cache()
    step: Any = ops.stepper(model.body, held)
    assert_same(step, model, held, plain, random_tokens(5))
    tokens = np.array([random_tokens(3)])
    assert np.array_equal(step(tokens), model.body(tokens, plain))
    assert_same(step, model, held, plain, random_tokens(5))


@pytest.mark.parametrize("token", [300, 1 << 40, -1])
def test_a_token_outside_the_vocabulary_is_refused(token: int, tmp_path: Path) -> None:
    model = load(tmp_path, "llama")
    held = model.make_cache()
    step: Any = ops.stepper(model.body, held)
    for known in (1, 2, 3):
        step(one(known))
    with pytest.raises(ValueError, match="row ids lie between 0 and 299"):
        step(np.array([[token]], np.int64))


def test_stages_are_timed_in_every_step(tmp_path: Path) -> None:
    model = load(tmp_path, "llama")
    body, held = Counted(model), model.make_cache()
    step: Any = ops.stepper(body, held)
    for token in random_tokens(5):
        step(one(token))
    body.calls = 0
    with profile.Profile() as timed:
        for token in random_tokens(4):
            step(one(token))
    assert body.calls == 4 and timed.stages.keys() == {"attention", "mlp"}
