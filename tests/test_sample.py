"""Samplers and processors against NumPy written from their definitions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from sampling import min_p, softmax, top_k, top_p, typical

from mlx_ferrum import sample
from mlx_ferrum.generate.step import token_ids
from mlx_ferrum.sample.arrays import at_hand

VOCAB = 50


@pytest.fixture(autouse=True)
def each_kind(lazy: bool) -> bool:
    """Every test here with MLX's arrays, as on a lazy backend, and with NumPy's."""
    return lazy


def given(x: Any) -> Any:
    """Float32 of the kind that filters are given."""
    return at_hand(mx.array(np.asarray(x, np.float32)))


def random_logprobs(seed: int, banned: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=VOCAB)
    logits[rng.permutation(VOCAB)[:banned]] = -np.inf
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(softmax(logits)))


FILTERS: list[tuple[Any, Any, float]] = [
    *[(sample.by_top_k, top_k, k) for k in (1, 2, 7, VOCAB - 1)],
    *[(sample.by_top_p, top_p, p) for p in (0.05, 0.5, 0.9, 0.99)],
    *[(sample.by_min_p, min_p, p) for p in (0.01, 0.2, 1.0)],
    *[(sample.by_typical, typical, p) for p in (0.05, 0.3, 0.8, 0.95)],
]


@pytest.mark.parametrize(("ours", "theirs", "value"), FILTERS)
@pytest.mark.parametrize("banned", [0, 10])
@pytest.mark.parametrize("seed", range(5))
def test_a_filter_keeps_what_its_definition_says(
    ours: Callable[[float], sample.Filter],
    theirs: Callable[..., set[int]],
    value: float,
    banned: int,
    seed: int,
) -> None:
    logprobs = random_logprobs(seed, banned)
    possible = set(np.flatnonzero(np.isfinite(logprobs)).tolist())
    rows = given(np.stack([logprobs, np.roll(logprobs, 3)]))
    first, second = np.asarray(ours(value)(rows))
    assert set(np.flatnonzero(np.isfinite(first)).tolist()) == theirs(logprobs, value) & possible
    np.testing.assert_allclose(second, np.roll(first, 3), atol=1e-6)
    kept = np.isfinite(first)
    np.testing.assert_allclose(np.diff(first[kept]), np.diff(logprobs[kept]), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-4])
@pytest.mark.parametrize(("ours", "order"), [(sample.by_top_p, 0), (sample.by_typical, 1)])
def test_a_mass_of_nothing_keeps_one_token_as_a_small_one_does(
    ours: Callable[[float], sample.Filter], order: int, value: float
) -> None:
    logprobs = random_logprobs(2)
    nearest = (top_k(logprobs, 1), typical(logprobs, 0.0))[order]
    assert set(np.flatnonzero(np.isfinite(np.asarray(ours(value)(given(logprobs)))))) == nearest


@pytest.mark.parametrize(
    ("name", "off", "near"),
    [("top_p", 1.0, 1 - 1e-7), ("typical_p", 1.0, 1 - 1e-7), ("min_p", 0.0, 1e-12)],
)
def test_a_filter_that_is_off_is_the_limit_of_small_changes(
    name: str, off: float, near: float
) -> None:
    rows = mx.array(np.tile(random_logprobs(4), (300, 1)).astype(np.float32))
    values: list[Any] = [{name: off}, {name: near}]
    without, barely = (token_ids(sample.make_sampler(1.0, seed=3, **v)(rows)) for v in values)
    assert without == barely


@pytest.mark.parametrize("name", ["top_p", "top_k", "temp"])
def test_the_least_of_a_filter_is_the_most_likely_token(name: str) -> None:
    logprobs = random_logprobs(6)
    rows = mx.array(np.tile(logprobs, (300, 1)).astype(np.float32))
    values: dict[str, list[Any]] = {
        "top_p": [0, 0.0, 1e-9],
        "top_k": [1],
        "temp": [0, 1e-7, 1e-5],
    }
    for value in values[name]:
        draw = sample.make_sampler(**{"temp": 1.0, "seed": 0, name: value})
        assert set(token_ids(draw(rows))) == {int(logprobs.argmax())}, value


def test_a_min_p_of_one_keeps_the_most_likely_and_its_equals() -> None:
    rows = given(np.log([[0.4, 0.2, 0.4]]))
    assert np.isfinite(np.asarray(sample.by_min_p(1.0)(rows))).tolist() == [[True, False, True]]


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("p", [0.1, 0.6, 0.97, 0.9999])
def test_mass_over_a_large_vocabulary(spread: float, p: float) -> None:
    """From a few tokens to nearly all of 40,000."""
    logits = np.random.default_rng(8).normal(scale=spread, size=(2, 40_000))
    kept = np.isfinite(np.asarray(sample.by_top_p(p)(given(logits))))
    for row, found in zip(logits, kept, strict=True):
        probs = softmax(row)
        mass = probs[found].sum()
        # running float32 sums of 40,000 numbers
        assert p - 1e-4 <= mass <= p + probs[found].min() + 1e-4
        assert probs[found].min() >= probs[~found].max() * (1 - 1e-6)


def test_filters_read_probabilities_of_what_the_filter_before_left() -> None:
    logprobs = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    # Of the two left by top-k the first has 0.4 / 0.7 = 0.57: enough for 0.5, not for 0.6.
    for p, count in ((0.5, 1), (0.6, 2)):
        draw = sample.make_sampler(1.0, top_k=2, top_p=p, seed=1)
        rows = mx.array(np.tile(logprobs, (500, 1)))
        assert set(token_ids(draw(rows))) == set(range(count))


def test_xtc_needs_two_top_choices() -> None:
    rows = given(np.log([[0.6, 0.3, 0.1]]))
    kept = sample.by_xtc(1.0, 0.5, [], sample.Keys(0))(rows)
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(rows))


def test_a_seed_fixes_the_draws_whatever_else_draws() -> None:
    rows = mx.array(np.tile(random_logprobs(1), (20, 1)).astype(np.float32))
    runs = []
    for seed, noise in ((7, 0), (7, 99), (8, 0)):
        draw = sample.make_sampler(1.0, seed=seed, xtc_probability=0.5)
        mx.random.seed(noise)
        runs.append([[*token_ids(draw(rows)), mx.random.uniform().item()] for _ in range(3)])
    without_noise = [[row[:-1] for row in run] for run in runs]
    assert without_noise[0] == without_noise[1] != without_noise[2]
    assert without_noise[0][0] != without_noise[0][1], "each call draws anew"


def test_without_a_seed_the_global_generator_decides() -> None:
    rows = mx.array(np.tile(random_logprobs(1), (20, 1)).astype(np.float32))
    draw = sample.make_sampler(1.0)
    drawn = []
    for seed in (3, 3, 4):
        mx.random.seed(seed)
        drawn.append(draw(rows).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("temp", [0.0, 1e-9, 1e-6, 1e-3])
def test_no_temperature_at_all_is_greedy(temp: float) -> None:
    logprobs = random_logprobs(3, banned=5)
    rows = mx.array(np.tile(logprobs, (200, 1)).astype(np.float32))
    assert set(token_ids(sample.make_sampler(temp, seed=0)(rows))) == {int(logprobs.argmax())}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temp", -1.0),
        ("temp", float("nan")),
        ("temp", float("inf")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("typical_p", 2.0),
        ("xtc_probability", 1.5),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("temp", 1e31),
        ("temp", "1"),
        ("temp", None),
        ("temp", True),
        ("top_p", -1e-9),
        ("top_k", True),
        ("min_p", [0.1]),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}, expected a")):
        sample.make_sampler(**{"temp": 1.0, name: value})


def test_an_xtc_threshold_that_finds_nothing_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"xtc_threshold is 0\.6, expected a number from 0 to 0\.5"
    ):
        sample.make_sampler(1.0, xtc_probability=0.5, xtc_threshold=0.6)


def penalized(
    logits: np.ndarray, tokens: list[int], repetition: float, presence: float, frequency: float
) -> np.ndarray:
    """As llama.cpp and the OpenAI API define the three, one token at a time."""
    out = logits.astype(np.float64)
    for token in set(tokens):
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
        out[token] -= presence + frequency * tokens.count(token)
    return out


@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"),
    [(1.3, 0, 0), (0.8, 0, 0), (1, 0.7, 0), (1, -0.7, 0), (1, 0, 0.4), (1.2, 0.5, 0.25)],
)
@pytest.mark.parametrize("window", [0, 1, 5, 64, None])
def test_penalties(
    repetition: float, presence: float, frequency: float, window: int | None
) -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(scale=3, size=(2, VOCAB)).astype(np.float32)
    tokens = rng.integers(0, 12, size=30).tolist()  # few ids, so that many repeat
    (process,) = sample.make_processors(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        penalty_window=window,
    )
    seen = tokens if window is None else tokens[len(tokens) - min(window, len(tokens)) :]
    ours = np.asarray(process(mx.array(tokens, mx.uint32), mx.array(logits)))
    theirs = [penalized(row, seen, repetition, presence, frequency) for row in logits]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_logit_bias_adds_and_bans() -> None:
    logits = mx.array([[1.0, 2.0, 3.0]])
    (process,) = sample.make_processors(logit_bias={0: 4.5, 2: -float("inf")})
    assert process(mx.array([1]), logits).tolist() == [[5.5, 2.0, -float("inf")]]


def test_processors_that_do_nothing_are_left_out() -> None:
    assert sample.make_processors() == sample.make_processors(logit_bias={}) == []


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {2**31: 1.0}},
        {"logit_bias": {10**30: 1.0}},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"frequency_penalty": 1.0, "penalty_window": -1},
        {"frequency_penalty": "1"},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": {1: "1.0"}},
        {"logit_bias": {1: None}},
    ],
)
def test_processors_refuse_what_has_no_meaning(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        sample.make_processors(**options)  # type: ignore[arg-type]


def test_logit_bias_beyond_the_vocabulary_is_refused() -> None:
    (process,) = sample.make_processors(logit_bias={3: 1.0})
    with pytest.raises(ValueError, match="logit_bias names token 3, the vocabulary has 3"):
        process(mx.array([1]), mx.zeros((1, 3)))


def test_samplers_compose() -> None:
    rows = mx.log(mx.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    steps: list[sample.Filter] = [sample.by_top_k(2), lambda x: -x]
    assert sample.compose(*steps, last=sample.greedy)(rows).tolist() == [2, 0]
    assert sample.greedy(rows).tolist() == [0, 2]
    assert all(isinstance(sample.make_sampler(t)(rows), mx.array) for t in (0, 1))


@pytest.mark.parametrize("window", [None, 0, 3])
def test_processors_of_the_package_do_the_same_to_either_kind_of_array(window: int | None) -> None:
    """The two in turn, as a generation has them."""
    rng = np.random.default_rng(4)
    logits, seen = rng.normal(size=(1, 20)).astype(np.float32), rng.integers(0, 20, 9)
    processors: list[Any] = sample.make_processors(
        logit_bias={3: -np.inf, 5: 2.5},
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        penalty_window=window,
    )
    found, wanted = logits.copy(), mx.array(logits)
    for process in processors:
        found = process(seen.astype(np.uint32), found)
        wanted = process(mx.array(seen), wanted)
    assert isinstance(found, np.ndarray) and isinstance(wanted, mx.array)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
