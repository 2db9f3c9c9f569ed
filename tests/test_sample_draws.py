"""Whole distributions: what is drawn, over many draws, against float64 (chi-square)."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from sampling import (
    filtered,
    min_p,
    misfit,
    softmax,
    top_k,
    top_p,
    typical,
    without_top_choices,
)

from mlx_ferrum import ops, sample
from mlx_ferrum.generate.step import token_ids

SMALL, LARGE = 1000, 150_001  # neither is a whole number of blocks
HIGHEST = 4.5  # standard deviations


@cache
def logprobs(name: str, vocab: int) -> np.ndarray:
    """One of five distributions: (vocab,) float32. No two tokens are equally likely: filters could choose."""
    rng = np.random.default_rng(vocab)
    noise = rng.normal(scale=0.05, size=vocab)
    ranks = rng.permutation(vocab)
    logits: dict[str, Any] = {
        "flat": np.zeros(vocab),
        "peaked": rng.normal(scale=3, size=vocab),
        "zipf": -np.log1p(ranks),
        "two-level": np.where(ranks < 12, np.log(1 / 12), np.log(1e-3 / vocab)),
        "certain": np.where(ranks == 0, 0.0, -60.0),
    }
    return np.asarray(np.log(softmax(logits[name] + noise)), np.float32)


DISTRIBUTIONS = ("flat", "peaked", "zipf", "two-level", "certain")


Case = tuple[float, list[tuple[Any, Any, float]]]
SAMPLERS: dict[str, Case] = {  # temperature, and filters: ours, their definition, its value
    "plain": (1.0, []),
    "cool": (0.7, []),
    "hot": (1.6, []),
    "top-k": (1.0, [(sample.by_top_k, top_k, 40)]),
    "top-p": (1.0, [(sample.by_top_p, top_p, 0.9)]),
    "typical": (1.0, [(sample.by_typical, typical, 0.6)]),
    "min-p": (1.0, [(sample.by_min_p, min_p, 0.05)]),
    "several": (0.8, [(sample.by_top_k, top_k, 500), (sample.by_top_p, top_p, 0.95)]),
}


def drawn(draw: sample.Sampler, row: Any, draws: int) -> np.ndarray:
    """`draws` tokens, in batches of a million probabilities at most. row: (vocab,)"""
    rows = min(draws, max(1, 1_000_000 // len(row)))
    batch = mx.array(np.broadcast_to(np.asarray(row), (rows, len(row))))
    return np.concatenate([token_ids(draw(batch)) for _ in range(-(-draws // rows))])


def number_of_draws(sampler: str, vocab: int, lazy: bool) -> int:
    """Enough to find a fault in a few seconds; MLX on a CPU needs 8 ms for one from 150,000 tokens."""
    if vocab == SMALL:
        return 3000
    return {"plain": 60 if lazy else 800}.get(sampler, 24 if lazy else 200)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_a_sampler_draws_its_distribution(vocab: int, name: str, sampler: str, lazy: bool) -> None:
    """What the filters leave is worked out once, and then drawn from many times."""
    temp, chain = SAMPLERS[sampler]
    row = logprobs(name, vocab)
    wanted = row.astype(np.float64)
    for _, definition, value in chain:
        wanted = filtered(wanted, definition, value)
    keep = sample.compose(*[ours(value) for ours, _, value in chain], last=lambda kept: kept)
    draw = sample.categorical(temp, sample.Keys(5))
    tokens = drawn(draw, keep(mx.array(row[None]))[0], number_of_draws(sampler, vocab, lazy))
    assert misfit(tokens, softmax(wanted / temp)) < HIGHEST


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_xtc_draws_its_distribution(vocab: int, lazy: bool) -> None:
    row = logprobs("two-level", vocab)  # twelve tokens of 8 % each
    draw = sample.make_sampler(1.0, xtc_probability=0.3, xtc_threshold=0.04, seed=3)
    probs = softmax(row.astype(np.float64))
    struck = softmax(without_top_choices(row.astype(np.float64), 0.04))
    tokens = drawn(draw, row, number_of_draws("xtc", vocab, lazy))
    assert misfit(tokens, 0.3 * struck + 0.7 * probs) < HIGHEST


EIGHT = np.log(softmax(np.random.default_rng(5).normal(size=8)))
OPTIONS: list[tuple[dict[str, float], list[tuple[Any, float]]]] = [
    ({}, []),
    ({"temp": 0.5}, []),
    ({"temp": 2.0}, []),
    ({"temp": 1.5, "top_k": 3}, [(top_k, 3)]),
    ({"top_p": 0.8}, [(top_p, 0.8)]),
    ({"top_p": 0.0}, [(top_k, 1)]),
    ({"min_p": 0.3, "temp": 0.7}, [(min_p, 0.3)]),
    ({"typical_p": 0.6}, [(typical, 0.6)]),
    ({"top_k": 6, "typical_p": 0.9, "top_p": 0.9}, [(top_k, 6), (typical, 0.9), (top_p, 0.9)]),
]


@pytest.mark.parametrize(("options", "chain"), OPTIONS)
@pytest.mark.parametrize("seed", [11, None])
def test_make_sampler_puts_filters_and_temperature_together(
    options: dict[str, float], chain: list[tuple[Any, float]], seed: int | None, lazy: bool
) -> None:
    mx.random.seed(4)
    draw = sample.make_sampler(**{"temp": 1.0, "seed": seed, **options})  # type: ignore[arg-type]
    wanted = EIGHT
    for definition, value in chain:
        wanted = filtered(wanted, definition, value)
    tokens = drawn(draw, EIGHT.astype(np.float32), 40_000)
    assert misfit(tokens, softmax(wanted / options.get("temp", 1.0))) < HIGHEST


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_xtc_drops_all_top_choices_but_the_least_likely(probability: float, lazy: bool) -> None:
    probs = np.array([0.4, 0.05, 0.25, 0.2, 0.1])
    draw = sample.make_sampler(
        1.0, xtc_probability=probability, xtc_threshold=0.15, xtc_special_tokens=[2], seed=2
    )
    tokens = drawn(draw, np.log(probs).astype(np.float32), 40_000)
    without = np.where(np.isin(np.arange(5), [0]), 0, probs)  # 3 is the least likely, 2 is special
    mixed = probability * without / without.sum() + (1 - probability) * probs
    assert misfit(tokens, mixed) < HIGHEST


def test_a_certain_token_is_drawn_on_every_backend(backend: Backend) -> None:
    """All other tokens together have 2e-21; or some have nothing at all, and those that have are drawn."""
    row = np.full(262_144, -60.0, np.float32)
    row[200_007] = 0.0
    draw = sample.make_sampler(1.0, seed=1)
    count = 20 if ops.is_lazy() else 300
    assert set(drawn(draw, row, count)) == {200_007}
    row[:] = -np.inf
    row[[0, 511, 512, 262_143]] = -70.0, -70.0, -70.0, -71.0
    assert set(drawn(draw, row, count)) <= {0, 511, 512, 262_143}


def test_the_test_finds_what_is_wrong() -> None:
    """One half of the ids favoured, junk in every hundredth draw, one draw of what has no probability."""
    rng = np.random.default_rng(1)
    probs = softmax(logprobs("zipf", SMALL).astype(np.float64))
    right = rng.choice(SMALL, 4000, p=probs)
    assert misfit(right, probs) < HIGHEST
    half = np.where(np.arange(SMALL) < SMALL // 2, 1.3, 0.7)
    assert misfit(rng.choice(SMALL, 4000, p=probs * half / (probs * half).sum()), probs) > HIGHEST
    probs = softmax(logprobs("two-level", SMALL).astype(np.float64))
    right = rng.choice(SMALL, 4000, p=probs)
    junk = np.where(rng.random(4000) < 0.01, rng.integers(0, SMALL, 4000), right)
    assert misfit(right, probs) < HIGHEST < misfit(junk, probs)
    assert misfit(np.append(right, 0), np.where(np.arange(SMALL) == 0, 0, probs)) == np.inf
