"""Sampling written from its definitions in float64, and how well draws fit a distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NEVER = 1e-13  # of the probability of the most likely token: no backend draws what has less


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def kept_by_mass(probs: np.ndarray, order: np.ndarray, mass: float) -> set[int]:
    """The first tokens of `order` that have at least `mass` together; always one."""
    sums = np.cumsum(probs[order])
    return set(order[: 1 + np.searchsorted(sums, mass)].tolist())


def top_k(logprobs: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-logprobs)[:k].tolist())


def top_p(logprobs: np.ndarray, p: float) -> set[int]:
    probs = softmax(logprobs)
    return kept_by_mass(probs, np.argsort(-probs), p)


def min_p(logprobs: np.ndarray, p: float) -> set[int]:
    probs = softmax(logprobs)
    return set(np.flatnonzero(probs >= p * probs.max()).tolist())


def typical(logprobs: np.ndarray, p: float) -> set[int]:
    probs = softmax(logprobs)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probs)
        entropy = np.nansum(probs * surprise)
    return kept_by_mass(probs, np.argsort(np.abs(surprise - entropy)), p)


def filtered(
    logprobs: np.ndarray, keep: Callable[[np.ndarray, float], set[int]], value: float
) -> np.ndarray:
    """What a filter leaves of logprobs (vocab,): the others are -inf."""
    out = np.full_like(logprobs, -np.inf)
    kept = list(keep(logprobs, value))
    out[kept] = logprobs[kept]
    return out


def without_top_choices(logprobs: np.ndarray, threshold: float) -> np.ndarray:
    """XTC when it strikes: of the tokens of `threshold` or more the least likely one stays."""
    probs = softmax(logprobs)
    top = np.flatnonzero(probs >= threshold)
    removed = top[probs[top] > probs[top].min()] if top.size else top
    out = logprobs.copy()
    out[removed] = -np.inf
    return out


def misfit(tokens: np.ndarray, probs: np.ndarray, expected: float = 20) -> float:
    """How many standard deviations chi-square lies too high; inf if a token was drawn that never may be.

    tokens: (n,), probs: (vocab,). A likely token is a bin of its own; the others, in order of their
    ids, share bins in which `expected` draws or more should fall.
    """
    counts = np.bincount(tokens, minlength=len(probs))
    if counts[probs < NEVER * probs.max()].any():
        return np.inf
    wanted = len(tokens) * probs
    likely = wanted >= expected
    edges = np.cumsum(np.where(likely, 0, wanted)) // expected
    bins = np.where(likely, edges[-1] + np.cumsum(likely), np.minimum(edges, max(edges[-1] - 1, 0)))
    found = np.bincount(bins.astype(int), counts)
    right = np.bincount(bins.astype(int), wanted)
    found, right = found[right > 0], right[right > 0]
    freedom = len(right) - 1
    if freedom == 0:
        return 0.0
    scaled = ((found - right) ** 2 / right).sum() / freedom
    spread = 2 / (9 * freedom)  # Wilson and Hilferty: the cube root is nearly normal
    return float((np.cbrt(scaled) - (1 - spread)) / np.sqrt(spread))
