"""Filters remove tokens before one is drawn.

A *filter* maps log-probabilities (…, vocab) to log-probabilities (…, vocab) with the tokens it
removes at -inf; it need not renormalise, because every filter that reads probabilities does so
itself. Arrays are MLX's or NumPy's, and so is what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .arrays import Array, keep_largest, keep_mass, kind, log_softmax, uniform
from .checks import check_integer, check_number
from .keys import Keys

Filter = Callable[[Array], Array]


def by_top_k(k: int) -> Filter:
    """Keep exactly the `k` most likely tokens."""
    check_integer("top_k", k, 1)

    def apply(logprobs: Array) -> Array:
        if k >= logprobs.shape[-1]:
            return logprobs
        return keep_largest(logprobs, k)

    return apply


def by_top_p(p: float) -> Filter:
    """Keep the fewest tokens, the most likely first, that together have probability `p`.

    1 keeps every token, 0 only the most likely one.
    Source: nucleus sampling, arXiv:1904.09751.
    """
    check_number("top_p", p, 0, 1)

    def apply(logprobs: Array) -> Array:
        logprobs = log_softmax(logprobs)
        return keep_mass(logprobs, -logprobs, p)

    return apply


def by_typical(p: float) -> Filter:
    """Keep the fewest tokens, nearest the entropy first, that together have probability `p`.

    1 keeps every token, 0 only the one nearest the entropy.
    Source: locally typical sampling, arXiv:2202.00666.
    """
    check_number("typical_p", p, 0, 1)

    def apply(logprobs: Array) -> Array:
        logprobs = log_softmax(logprobs)
        xp = kind(logprobs)
        surprise = xp.where(xp.isinf(logprobs), 0, -logprobs)  # 0 * inf would be NaN
        entropy = (xp.exp(logprobs) * surprise).sum(axis=-1, keepdims=True)
        return keep_mass(logprobs, xp.abs(-logprobs - entropy), p)

    return apply


def by_min_p(p: float) -> Filter:
    """Keep the tokens that are at least `p` times as likely as the most likely one.

    0 keeps every token, 1 only the most likely one and its equals.
    Source: min-p sampling, arXiv:2407.01082.
    """
    check_number("min_p", p, 0, 1)
    gap = math.log(p) if p > 0 else -math.inf

    def apply(logprobs: Array) -> Array:
        floor = logprobs.max(axis=-1, keepdims=True) + gap
        return kind(logprobs).where(logprobs < floor, -math.inf, logprobs)

    return apply


def by_xtc(
    probability: float, threshold: float, special_tokens: Sequence[int], keys: Keys
) -> Filter:
    """With the given probability, remove all tokens of `threshold` or more but the least likely.

    "Exclude top choices": `special_tokens` (end of text, newline) are never removed. A threshold
    above 0.5 could never find two such tokens and is refused.
    """
    check_number("xtc_probability", probability, 0, 1)
    check_number("xtc_threshold", threshold, 0, 0.5)

    def apply(logprobs: Array) -> Array:
        xp = kind(logprobs)
        probs = xp.exp(log_softmax(logprobs))
        top = (probs >= threshold) & (probs > 0)
        least = xp.where(top, probs, math.inf).min(axis=-1, keepdims=True)
        removed = top & (probs > least)
        if special_tokens:
            removed[..., xp.array(list(special_tokens))] = False
        drawn = uniform((*logprobs.shape[:-1], 1), xp, keys) < probability
        return xp.where(removed & drawn, -math.inf, logprobs)

    return apply
