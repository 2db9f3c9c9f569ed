"""Samplers turn log-probabilities (…, vocab) into token ids (…,). They know no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .arrays import Array, at_hand, draw, kind, tokens
from .checks import check_number
from .filters import Filter, by_min_p, by_top_k, by_top_p, by_typical, by_xtc
from .keys import Keys

Sampler = Callable[[mx.array], mx.array]

GREEDY_BELOW = 1e-6  # a temperature below this would overflow float32 and is the argmax anyway
HOTTEST = 1e30  # float32 has no temperature far above this


def make_sampler(
    temp: float = 0.0,
    *,
    top_k: int = 0,
    typical_p: float = 1.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    xtc_probability: float = 0.0,
    xtc_threshold: float = 0.1,
    xtc_special_tokens: Sequence[int] = (),
    seed: int | None = None,
    keys: Keys | None = None,
) -> Sampler:
    """A sampler: the filters that are switched on, in the order of the arguments, then `temp`.

    The defaults switch every filter off. `temp` 0 is greedy and uses no filter. `top_p` 0 keeps
    only the most likely token, as the limit of small values does (mlx-lm takes it as off); so does
    `top_k` 1, while 0 is off. On one backend the same `seed` gives the same tokens whatever else
    draws random numbers; without one MLX's global generator (`mx.random.seed`) is used in the main
    thread, and the system's entropy in others. `keys` are random numbers to use in place of a seed.

    Raises:
        ValueError: an argument is out of its range.
    """
    keys = Keys(seed) if keys is None else keys
    filters: list[Filter] = []
    if top_k != 0:
        filters.append(by_top_k(top_k))
    if typical_p != 1.0:
        filters.append(by_typical(typical_p))
    if top_p != 1.0:
        filters.append(by_top_p(top_p))
    if min_p != 0.0:
        filters.append(by_min_p(min_p))
    if xtc_probability != 0.0:
        filters.append(by_xtc(xtc_probability, xtc_threshold, xtc_special_tokens, keys))
    check_number("temp", temp, 0, HOTTEST)
    return greedy if temp < GREEDY_BELOW else compose(*filters, last=categorical(temp, keys))


class Drawing:
    """A sampler of one text, whose draws depend on seed and position alone once `seek` says the position."""

    def __init__(self, sampler: Sampler, keys: Keys) -> None:
        self._sampler, self._keys = sampler, keys

    def __call__(self, logprobs: mx.array) -> mx.array:
        return self._sampler(logprobs)

    def seek(self, position: int) -> None:
        """Say at which position of the text the next token is drawn."""
        self._keys.seek(position)


def make_drawing(*, seed: int | None = None, **options: Any) -> Sampler:
    """As `make_sampler`, for one text: a Drawing, or `greedy`."""
    keys = Keys(seed)
    made = make_sampler(**options, keys=keys)
    return made if made is greedy else Drawing(made, keys)


def compose(*filters: Filter, last: Sampler) -> Sampler:
    """The sampler that applies `filters` from left to right and then `last`."""

    def sample(logprobs: mx.array) -> mx.array:
        numbers = at_hand(logprobs)
        for apply in filters:
            numbers = apply(numbers)
        return last(numbers)

    return sample


def greedy(logprobs: Array) -> mx.array:
    """The most likely token: (…, vocab) -> (…,)."""
    numbers = at_hand(logprobs)
    return tokens(kind(numbers).argmax(numbers, axis=-1))


def categorical(temp: float, keys: Keys) -> Sampler:
    """Draw a token in proportion to `p ** (1 / temp)`."""

    def sample(logprobs: Array) -> mx.array:
        numbers = at_hand(logprobs)
        # The largest is moved to 0, so that no temperature can overflow.
        return tokens(draw((numbers - numbers.max(axis=-1, keepdims=True)) / temp, keys))

    return sample
