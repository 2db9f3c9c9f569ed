"""Logits against golden files that float32 transformers made (golden/make_logits.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import REFERENCE, Backend
from divergence import MAX_KL, coarsen, kl, log_softmax
from routing import Routed, is_clear, is_tainted

import mlx_ferrum

GOLDEN = Path(__file__).parent / "golden"
SEED = 2026  # of make_logits.py
TAINTED_KL, OTHER_KL = 1e-3, 0.2  # after a token that got other experts, and of that token
PIECES = (17, 1, 9, 1, 12)  # the golden texts' 40 tokens


@pytest.fixture(scope="module")
def random_goldens() -> Any:
    return np.load(GOLDEN / "random_logits.npz")


@pytest.fixture(scope="module")
def real_goldens() -> Any:
    return np.load(GOLDEN / "real_logits.npz")


def load_case(folder: Path, name: str) -> Any:
    model, _ = mlx_ferrum.load(random_models.write_case(folder / "model.gguf", name, SEED))
    return model


def run(model: Any, tokens: np.ndarray, cache: Any = None) -> np.ndarray:
    """tokens: (b, l) -> logits (b, l, vocab)"""
    return np.array(model(mx.array(tokens), cache=cache))


def check(expected: np.ndarray, found: np.ndarray, backend: Backend = REFERENCE) -> None:
    """Both (l, vocab) logits."""
    assert kl(log_softmax(expected), log_softmax(found)).max() < MAX_KL
    np.testing.assert_allclose(found, expected, rtol=0, atol=backend.logit)


def check_golden(
    goldens: Any, name: str, found: np.ndarray, routed: Routed, backend: Backend
) -> None:
    """found: (l, vocab), all of them; a token that got other experts, and those after it, are held to less."""
    expected = goldens[f"{name}.logits"]
    other = routed.other(goldens, name)
    same = np.cumsum(other) == 0
    check(expected[same], found[same], backend)
    far = kl(log_softmax(expected), log_softmax(found))
    assert far[~other].max() < TAINTED_KL
    assert far.max() < OTHER_KL


@pytest.mark.parametrize("name", random_models.CASES)
def test_random_model(backend: Backend, name: str, tmp_path: Path, random_goldens: Any) -> None:
    """A whole text at once, in a batch with another one."""
    tokens = random_goldens[f"{name}.tokens"]
    model = load_case(tmp_path, name)
    routed = Routed(model, len(tokens))
    found = run(model, np.stack([tokens, tokens[::-1]]))
    check_golden(random_goldens, name, found[0], routed, backend)


@pytest.mark.parametrize("name", random_models.CASES)
def test_random_model_in_pieces(
    backend: Backend, name: str, tmp_path: Path, random_goldens: Any
) -> None:
    """Keys and values come from the cache, over the edge of the window too."""
    tokens = random_goldens[f"{name}.tokens"]
    model = load_case(tmp_path, name)
    cache, routed = model.make_cache(), Routed(model)
    pieces = np.split(tokens, np.cumsum(PIECES)[:-1])
    found = [run(model, piece[None], cache)[0] for piece in pieces]
    check_golden(random_goldens, name, np.concatenate(found), routed, backend)


@pytest.mark.parametrize(
    "name", [name for name, case in random_models.CASES.items() if random_models.has_experts(case)]
)
def test_experts_are_those_of_the_oracle(
    backend: Backend, name: str, tmp_path: Path, random_goldens: Any
) -> None:
    """In every layer, for every token whose choice is no close call and comes from the same hidden state."""
    model = load_case(tmp_path, name)
    routed, router_logits = Routed(model), random_goldens[f"{name}.router_logits"]
    run(model, random_goldens[f"{name}.tokens"][None])
    clear = is_clear(router_logits, routed.used)
    differs = routed.differs(router_logits)
    assert clear.mean() > 0.5
    assert not (differs & clear & ~is_tainted(differs)).any()
    assert differs.mean() < 0.06


def test_window_slides(backend: Backend, tmp_path: Path) -> None:
    """A text many times the window, at once and with a cache that must drop old keys."""
    model = load_case(tmp_path, "gemma3")
    tokens = np.random.default_rng(SEED).integers(0, 300, 700)
    cache = model.make_cache()
    pieces = [300, 301, 302, 560, 561, 568, 577]
    found = [run(model, piece[None], cache)[0] for piece in np.split(tokens, pieces)]
    check(run(model, tokens[None])[0], np.concatenate(found), backend)


@pytest.mark.parametrize(
    ("name", "fixture"), [("smollm2-135m", "smollm2"), ("gemma3-270m", "gemma3")]
)
def test_real_model(
    fast_backend: Backend,
    name: str,
    fixture: str,
    real_goldens: Any,
    request: pytest.FixtureRequest,
) -> None:
    """Code and text in several scripts: the 512 most likely tokens, 512 others, and the rest together."""
    model, _ = request.getfixturevalue(fixture)
    tokens, positions, ids, expected = (
        real_goldens[f"{name}.{part}"] for part in ("tokens", "positions", "ids", "log_probs")
    )
    hidden = np.array(model.body(model.make_cache().batch(tokens[None])))
    logits = np.array(model.head(fast_backend.array(hidden[positions])))
    found = coarsen(log_softmax(logits), ids)
    assert kl(expected, found).max() < MAX_KL
    np.testing.assert_allclose(found, expected, rtol=0, atol=fast_backend.logit)
