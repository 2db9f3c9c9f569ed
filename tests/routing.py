"""The experts that a model chooses, beside those that the oracle's router logits call for.

A token whose best experts lie close together may get others where arithmetic differs in the last digits. Its hidden
state is then another one, and so is, a little, that of each token after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from divergence import log_softmax

from mlx_ferrum.nn import Experts

MARGIN = 1e-3  # of the last expert chosen over the next one, in their scores: more is no close call


class Routed:
    """What the layers of a model choose from now on; in each pass for the first `count` rows, or for all."""

    def __init__(self, model: Any, count: int | None = None) -> None:
        self._count = count
        layers = [layer.mlp for layer in model.body.layers if isinstance(layer.mlp, Experts)]
        self._ids: list[list[np.ndarray]] = [[] for _ in layers]
        for layer, ids in zip(layers, self._ids, strict=True):
            layer.observer = lambda _, found, __, ids=ids: ids.append(
                np.array(found)[: self._count]
            )

    def differs(self, router_logits: np.ndarray) -> np.ndarray:
        """Where experts are not the oracle's: (layers, length, experts) -> (layers, length)"""
        found = np.stack([np.concatenate(ids) for ids in self._ids])  # (layers, length, used)
        wanted = np.argsort(-router_logits, axis=-1)[..., : found.shape[-1]]
        return np.asarray((np.sort(found) != np.sort(wanted)).any(-1))

    def other(self, goldens: Any, name: str) -> np.ndarray:
        """Which tokens got other experts somewhere than those of a golden file: (length,)"""
        if not self._ids:
            return np.zeros(len(goldens[f"{name}.tokens"]), bool)
        return np.asarray(self.differs(goldens[f"{name}.router_logits"]).any(0))

    @property
    def used(self) -> int:
        """Experts that a token gets."""
        return int(self._ids[0][0].shape[-1])


def is_clear(router_logits: np.ndarray, used: int) -> np.ndarray:
    """Whether choices are no close calls: (layers, length, experts) -> (layers, length)"""
    ranked = -np.sort(-np.exp(log_softmax(router_logits)))
    return np.asarray(ranked[..., used - 1] - ranked[..., used] > MARGIN)


def is_tainted(differs: np.ndarray) -> np.ndarray:
    """Whether a lower layer has chosen otherwise for a token or one before it: (layers, length) -> the same"""
    lower = np.cumsum(differs, axis=0) - differs
    return np.asarray(np.cumsum(lower, axis=1) > 0)
