"""What sampling does to arrays, MLX's and NumPy's.

On a GPU everything stays lazy MLX. On a CPU MLX needs 24 ms to sort a vocabulary of 262,144 and 3 ms to
sum its exponentials, several tokens' worth; NumPy sums them in 0.1 ms, and only sorts the few that matter.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops

from .keys import Keys

Array = Any  # mx.array or np.ndarray
SORTED = 4096  # tokens that are sorted first; nearly always enough
BLOCK = 512  # tokens that are added up before one is drawn


def kind(x: Array) -> Any:
    """The package whose array x is."""
    return np if isinstance(x, np.ndarray) else mx


def at_hand(x: Array) -> Array:
    """x as it is on a lazy backend; elsewhere the numbers, for NumPy."""
    return x if ops.is_lazy() else np.asarray(x)


def tokens(ids: Array) -> mx.array:
    """Token ids as MLX's uint32."""
    if isinstance(ids, np.ndarray):
        return mx.array(ids.astype(np.uint32))
    return ids.astype(mx.uint32)


def best(logits: Array) -> tuple[Array, Array]:
    """As `ops.choose`, also of MLX's arrays where the backend has NumPy's: (n, vocab) -> (n,), (n, 2)."""
    if not isinstance(logits, np.ndarray):
        return ops.choose(logits)
    ids = logits.argmax(axis=-1)  # of a NaN where there is one
    ranges = np.empty((len(logits), 2), np.float32)
    ranges[:, 0], ranges[:, 1] = logits.min(axis=-1), logits[np.arange(len(logits)), ids]
    return ids, ranges


def log_softmax(logits: Array) -> Array:
    """Log-probabilities of logits: (…, vocab) -> (…, vocab) float32."""
    if isinstance(logits, np.ndarray):
        logits = logits.astype(np.float32, copy=False)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return shifted
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def keep_largest(logprobs: Array, k: int) -> Array:
    """The k largest (k < vocab); the others become -inf."""
    dropped = kind(logprobs).argpartition(-logprobs, kth=k - 1, axis=-1)[..., k:]
    if isinstance(logprobs, np.ndarray):
        kept = logprobs.copy()
        np.put_along_axis(kept, dropped, -np.inf, axis=-1)
        return kept
    return mx.put_along_axis(logprobs, dropped, mx.array(-mx.inf, logprobs.dtype), axis=-1)


def keep_mass(logprobs: Array, order: Array, mass: float) -> Array:
    """Keep tokens by ascending `order` up to and with the one that brings the sum to `mass`."""
    if isinstance(logprobs, np.ndarray):
        return _keep_mass_now(logprobs, order, mass)
    ids = mx.argsort(order, axis=-1)
    ranked = mx.take_along_axis(logprobs, ids, axis=-1)
    before = mx.cumsum(mx.exp(ranked), axis=-1, inclusive=False)
    first = mx.arange(ranked.shape[-1]) == 0
    kept = mx.where((before < mass) | first, ranked, -mx.inf)
    return mx.put_along_axis(logprobs, ids, kept, axis=-1)


def _keep_mass_now(logprobs: np.ndarray, order: np.ndarray, mass: float) -> np.ndarray:
    """The same; sorts the smallest of `order`, and more only where they do not reach the mass."""
    count = min(SORTED, logprobs.shape[-1])
    while True:
        ids = _smallest(order, count)
        ranked = np.take_along_axis(logprobs, ids, axis=-1)
        probs = np.exp(ranked, dtype=np.float64)
        before = np.cumsum(probs, axis=-1) - probs
        before[..., 0] = -math.inf  # the first is kept whatever it has
        if count == logprobs.shape[-1] or (before[..., -1] >= mass).all():
            break
        count = min(8 * count, logprobs.shape[-1])
    kept = np.full_like(logprobs, -np.inf)
    np.put_along_axis(kept, ids, np.where(before < mass, ranked, -np.inf), axis=-1)
    return kept


def _smallest(order: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` smallest, in ascending order: (…, vocab) -> (…, count)."""
    if count == order.shape[-1]:
        return np.argsort(order, axis=-1)
    ids = np.argpartition(order, count, axis=-1)[..., :count]
    ranks = np.argsort(np.take_along_axis(order, ids, axis=-1), axis=-1)
    return np.take_along_axis(ids, ranks, axis=-1)


def draw(logits: Array, keys: Keys) -> Array:
    """Indices drawn in proportion to exp(logits): (…, vocab) -> (…,). A logit of -inf is never drawn.

    NumPy: the largest logit must be 0. Probabilities are right to one part in a million; one below
    1e-16 is never drawn.
    MLX: a token is never drawn that is less than 7e-12 times as likely as another. Below 1e-9 a
    probability is only roughly right.
    """
    if isinstance(logits, np.ndarray):
        return _draw_now(logits, keys)
    # Exponential waiting times, and whose is over first. Times are small where u is, and there
    # float32 resolves all 32 random bits; u is never 0, so no token wins whatever its probability.
    u = mx.random.uniform(low=2**-33, high=1, shape=logits.shape, key=keys.next())
    return (logits - mx.log(-mx.log1p(-u))).argmax(axis=-1)


def _draw_now(logits: np.ndarray, keys: Keys) -> np.ndarray:
    """By the cumulative distribution: first a block of tokens, then a token in it."""
    vocab = logits.shape[-1]
    probs = np.exp(logits)
    u = 1 - keys.uniform((2, *logits.shape[:-1]))  # (0, 1]
    blocks = np.add.reduceat(probs, np.arange(0, vocab, BLOCK), axis=-1)
    first = BLOCK * _pick(blocks, u[0])
    ids = first[..., None] + np.arange(min(BLOCK, vocab))
    inside = np.take_along_axis(probs, np.minimum(ids, vocab - 1), axis=-1)
    return first + _pick(np.where(ids < vocab, inside, 0), u[1])


def _pick(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The index at which the running sum reaches u times the sum: (…, n) and (…,) in (0, 1] -> (…,).

    The sum grows there, so a weight of 0 is never picked.
    """
    sums = np.cumsum(weights, axis=-1, dtype=np.float64)
    return (sums < u[..., None] * sums[..., -1:]).sum(axis=-1)


def uniform(shape: tuple[int, ...], xp: Any, keys: Keys) -> Array:
    """Numbers in [0, 1), of the package xp."""
    return keys.uniform(shape) if xp is np else mx.random.uniform(shape=shape, key=keys.next())
