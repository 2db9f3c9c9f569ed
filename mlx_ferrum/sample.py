"""Samplers turn log-probabilities into a token; logit processors change the logits before that.

A *filter* maps log-probabilities (…, vocab) to log-probabilities (…, vocab) with the tokens it
removes at -inf; it need not renormalise, because every filter that reads probabilities does so
itself. A *sampler* maps (…, vocab) to token ids (…,). A *processor* maps the tokens so far (n,)
and logits (…, vocab) to logits (…, vocab). Everything is lazy MLX and knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

Filter = Callable[[mx.array], mx.array]
Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

GREEDY_BELOW = 1e-6  # a temperature below this would overflow float32 and is the argmax anyway


class Keys:
    """Fresh random keys: from `seed`, or from MLX's global generator when it is None."""

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}, expected 0 to 2**64 - 1")
        self._key = None if seed is None else mx.random.key(seed)

    def next(self) -> mx.array | None:
        """The next key; None asks MLX to use its global generator."""
        if self._key is None:
            return None
        self._key, key = mx.random.split(self._key)
        return key


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
) -> Sampler:
    """A sampler: the filters that are switched on, in the order of the arguments, then `temp`.

    The defaults switch every filter off. `temp` 0 is greedy and uses no filter. The same `seed`
    gives the same tokens whatever else draws random numbers; without one MLX's global generator
    (`mx.random.seed`) is used.

    Raises:
        ValueError: an argument is out of its range.
    """
    keys = Keys(seed)
    filters: list[Filter] = []
    if top_k != 0:
        filters.append(by_top_k(top_k))
    if typical_p != 1.0:
        filters.append(by_typical(typical_p))
    if top_p not in (0.0, 1.0):  # 0 is how mlx-lm says "off"
        filters.append(by_top_p(top_p))
    if min_p != 0.0:
        filters.append(by_min_p(min_p))
    if xtc_probability != 0.0:
        filters.append(by_xtc(xtc_probability, xtc_threshold, xtc_special_tokens, keys))
    _check("temp", temp, 0, math.inf)
    return greedy if temp < GREEDY_BELOW else compose(*filters, last=categorical(temp, keys))


def compose(*filters: Filter, last: Sampler) -> Sampler:
    """The sampler that applies `filters` from left to right and then `last`."""

    def sample(logprobs: mx.array) -> mx.array:
        for apply in filters:
            logprobs = apply(logprobs)
        return last(logprobs)

    return sample


def greedy(logprobs: mx.array) -> mx.array:
    """The most likely token: (…, vocab) -> (…,)."""
    return mx.argmax(logprobs, axis=-1)


def categorical(temp: float, keys: Keys) -> Sampler:
    """Draw a token in proportion to `p ** (1 / temp)`."""

    def sample(logprobs: mx.array) -> mx.array:
        # The largest is moved to 0, so that no temperature can overflow.
        scaled = (logprobs - logprobs.max(axis=-1, keepdims=True)) / temp
        return mx.random.categorical(scaled, key=keys.next())

    return sample


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities of logits: (…, vocab) -> (…, vocab) float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def by_top_k(k: int) -> Filter:
    """Keep exactly the `k` most likely tokens."""
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"top_k is {k}, expected an integer of at least 1 (0 switches it off)")

    def apply(logprobs: mx.array) -> mx.array:
        if k >= logprobs.shape[-1]:
            return logprobs
        dropped = mx.argpartition(-logprobs, kth=k - 1, axis=-1)[..., k:]
        return mx.put_along_axis(logprobs, dropped, mx.array(-mx.inf, logprobs.dtype), axis=-1)

    return apply


def by_top_p(p: float) -> Filter:
    """Keep the fewest tokens, the most likely first, that together have probability `p`.

    Source: nucleus sampling, arXiv:1904.09751.
    """
    _check("top_p", p, 0, 1)

    def apply(logprobs: mx.array) -> mx.array:
        logprobs = log_softmax(logprobs)
        return _keep_mass(logprobs, -logprobs, p)

    return apply


def by_typical(p: float) -> Filter:
    """Keep the fewest tokens, nearest the entropy first, that together have probability `p`.

    Source: locally typical sampling, arXiv:2202.00666.
    """
    _check("typical_p", p, 0, 1)

    def apply(logprobs: mx.array) -> mx.array:
        logprobs = log_softmax(logprobs)
        surprise = mx.where(mx.isinf(logprobs), 0, -logprobs)  # 0 * inf would be NaN
        entropy = (mx.exp(logprobs) * surprise).sum(axis=-1, keepdims=True)
        return _keep_mass(logprobs, mx.abs(-logprobs - entropy), p)

    return apply


def by_min_p(p: float) -> Filter:
    """Keep the tokens that are at least `p` times as likely as the most likely one.

    Source: min-p sampling, arXiv:2407.01082.
    """
    _check("min_p", p, 0, 1)
    gap = math.log(p) if p > 0 else -math.inf

    def apply(logprobs: mx.array) -> mx.array:
        floor = logprobs.max(axis=-1, keepdims=True) + gap
        return mx.where(logprobs < floor, -mx.inf, logprobs)

    return apply


def by_xtc(
    probability: float, threshold: float, special_tokens: Sequence[int], keys: Keys
) -> Filter:
    """With the given probability, remove all tokens of `threshold` or more but the least likely.

    "Exclude top choices": `special_tokens` (end of text, newline) are never removed. A threshold
    above 0.5 could never find two such tokens and is refused.
    """
    _check("xtc_probability", probability, 0, 1)
    _check("xtc_threshold", threshold, 0, 0.5)

    def apply(logprobs: mx.array) -> mx.array:
        probs = mx.softmax(logprobs.astype(mx.float32), axis=-1)
        top = (probs >= threshold) & (probs > 0)
        least = mx.where(top, probs, mx.inf).min(axis=-1, keepdims=True)
        removed = top & (probs > least)
        if special_tokens:
            removed[..., mx.array(list(special_tokens))] = False
        draw = mx.random.uniform(shape=(*logprobs.shape[:-1], 1), key=keys.next())
        return mx.where(removed & (draw < probability), -mx.inf, logprobs)

    return apply


def make_processors(
    *,
    logit_bias: Mapping[int, float] | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    penalty_window: int | None = 64,
) -> list[Processor]:
    """The processors that are switched on; the defaults switch all of them off.

    Raises:
        ValueError: an argument is out of its range.
    """
    processors: list[Processor] = []
    if logit_bias:
        processors.append(bias(logit_bias))
    if (repetition_penalty, presence_penalty, frequency_penalty) != (1.0, 0.0, 0.0):
        processors.append(
            penalties(repetition_penalty, presence_penalty, frequency_penalty, penalty_window)
        )
    return processors


def bias(values: Mapping[int, float]) -> Processor:
    """Add `values[id]` to the logit of token `id`; -inf bans the token."""
    for token, value in values.items():
        if token < 0 or math.isnan(value) or value == math.inf:
            raise ValueError(
                f"logit_bias of token {token} is {value}, expected a number or -inf, and an id >= 0"
            )
    largest = max(values)
    ids = mx.array(list(values.keys()))
    added = mx.array(list(values.values()), mx.float32)

    def apply(_: mx.array, logits: mx.array) -> mx.array:
        if largest >= logits.shape[-1]:
            raise ValueError(
                f"logit_bias names token {largest}, the vocabulary has {logits.shape[-1]}"
            )
        return logits.at[..., ids].add(added)

    return apply


def penalties(
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    window: int | None = 64,
) -> Processor:
    """Make tokens less likely that occur among the last `window` (None: all), prompt included.

    A token that occurs c > 0 times has its logit divided by `repetition` where positive, else
    multiplied (arXiv:1909.05858), and then `presence + c * frequency` subtracted (the OpenAI API's
    definition). Negative `presence` and `frequency` make repetition more likely.
    """
    if not (repetition > 0 and math.isfinite(repetition)):
        raise ValueError(f"repetition_penalty is {repetition}, expected a number above 0")
    if not (math.isfinite(presence) and math.isfinite(frequency)):
        raise ValueError(
            f"presence_penalty is {presence} and frequency_penalty {frequency}, expected numbers"
        )
    if window is not None and window < 1:
        raise ValueError(f"penalty_window is {window}, expected at least 1, or None for all tokens")

    def apply(tokens: mx.array, logits: mx.array) -> mx.array:
        if window is not None:
            tokens = tokens[-window:]
        counts = mx.zeros(logits.shape[-1:]).at[tokens].add(1)  # (vocab,)
        scaled = mx.where(logits > 0, logits / repetition, logits * repetition)
        return mx.where(counts > 0, scaled - (presence + frequency * counts), logits)

    return apply


def _keep_mass(logprobs: mx.array, order: mx.array, mass: float) -> mx.array:
    """Keep tokens by ascending `order` up to and with the one that brings the sum to `mass`."""
    ids = mx.argsort(order, axis=-1)
    ranked = mx.take_along_axis(logprobs, ids, axis=-1)
    before = mx.cumsum(mx.exp(ranked), axis=-1, inclusive=False)
    first = mx.arange(ranked.shape[-1]) == 0
    kept = mx.where((before < mass) | first, ranked, -mx.inf)
    return mx.put_along_axis(logprobs, ids, kept, axis=-1)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name} is {value}, expected {low} to {high}")
