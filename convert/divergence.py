"""Numbers for each token: negative log-likelihood, KL divergence and the most likely token, in float64.

Logits come in pieces of a few rows, and float64 copies exist of BLOCK of them at a time for each thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mlx_ferrum.kernels.cpu import native

BLOCK = 1 << 18  # logits in float64 at a time, 2 MB


@dataclass(frozen=True)
class Rows:
    """The base's predictions at n positions.

    logits: (n, vocabulary) float32, up to a constant for each row
    nats: (n,) float64, -log of the probability of the text's next token
    top: (n,) int64, the most likely token
    """

    logits: np.ndarray
    nats: np.ndarray
    top: np.ndarray


def rows(logits: np.ndarray, wanted: Sequence[int]) -> Rows:
    """logits: (n, vocabulary) float32; wanted: (n,) tokens. Raises ValueError for logits that are not finite."""
    check(logits)
    ids, nats = np.asarray(wanted), np.empty(len(logits))

    def fill(part: slice) -> None:
        nats[part] = _nats(log_softmax(logits[part]), ids[part])

    _in_blocks(fill, *logits.shape)
    return Rows(logits, nats, logits.argmax(axis=-1))


@dataclass(frozen=True)
class Scores:
    """Another model's predictions at n positions beside the base's; as in comparison.Divergence, (n,) each."""

    nats: np.ndarray
    base_nats: np.ndarray
    kls: np.ndarray
    agrees: np.ndarray


def compare(base: Rows, logits: np.ndarray, wanted: Sequence[int]) -> Scores:
    """logits: (n, vocabulary) float32 of another model at the base's positions; wanted: (n,) tokens.

    Raises ValueError for logits that are not finite.
    """
    check(logits)
    ids, nats, kls = np.asarray(wanted), np.empty(len(logits)), np.empty(len(logits))

    def fill(part: slice) -> None:
        p, q = log_softmax(base.logits[part]), log_softmax(logits[part])
        nats[part] = _nats(q, ids[part])
        kls[part] = _kl(p, q)

    _in_blocks(fill, *logits.shape)
    return Scores(nats, base.nats, kls, base.top == logits.argmax(axis=-1))


def kl(base: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL divergence in nats of other logits from the base's, both (n, vocabulary) float32 -> (n,) float64.

    Raises ValueError for logits that are not finite.
    """
    check(logits)
    kls = np.empty(len(logits))

    def fill(part: slice) -> None:
        kls[part] = _kl(log_softmax(base[part]), log_softmax(logits[part]))

    _in_blocks(fill, *logits.shape)
    return kls


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of log-probabilities (n, vocabulary), which are overwritten -> (n,)"""
    np.subtract(p, q, out=q)
    # rounding may leave -1e-17 where two distributions are almost equal
    return np.maximum(np.einsum("ij,ij->i", np.exp(p, out=p), q), 0.0)


def _nats(log_p: np.ndarray, ids: np.ndarray) -> np.ndarray:
    nats: np.ndarray = -log_p[np.arange(len(ids)), ids]
    return nats


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """logits: (n, vocabulary) -> (n, vocabulary) float64"""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def check(logits: np.ndarray) -> None:
    """Raises ValueError if one is not finite."""
    if not np.isfinite(logits).all():
        bad = logits[~np.isfinite(logits)]
        raise ValueError(f"expected finite logits, found {bad[0]} and {bad.size - 1} more")


def _in_blocks(work: Callable[[slice], None], count: int, width: int) -> None:
    """Run `work` on slices of the rows, on all cores."""
    parts = list(_parts(count, max(1, BLOCK // width)))
    with ThreadPoolExecutor(native.cores()) as pool:
        list(pool.map(work, parts))


def _parts(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
