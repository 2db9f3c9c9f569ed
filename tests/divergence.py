"""How far one next-token distribution is from another, in float64."""

from __future__ import annotations

import numpy as np

MAX_KL = 1e-4  # nats, at every position: the project's promise


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis: (…, vocab) -> (…, vocab) float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) in nats of log-probabilities: (…, vocab) twice -> (…)."""
    return (np.exp(p) * (p - q)).sum(axis=-1)


def coarsen(log_probs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Keep the outcomes `ids` and add one for all the others together, in the last column.

    log_probs: (rows, vocab), ids: (rows, n) -> (rows, n + 1). The KL of two coarsened distributions is a lower bound
    of the KL of the whole ones.
    """
    kept = np.take_along_axis(log_probs, ids, axis=-1)
    others = np.exp(log_probs)
    np.put_along_axis(others, ids, 0.0, axis=-1)
    return np.concatenate([kept, np.log(others.sum(axis=-1, keepdims=True))], axis=-1)
