"""What the routers of a model choose, counted while it runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.nn import Experts


@dataclass
class Choices:
    """The choices of one layer.

    layer: its number, dense layers counted
    counts: (experts,) how many tokens chose each
    tokens: how many chose
    """

    layer: int
    counts: np.ndarray
    tokens: int = 0

    def add(self, ids: mx.array) -> None:
        """ids: (..., used)"""
        found = np.asarray(ids)
        self.counts += np.bincount(found.reshape(-1), minlength=self.counts.size)
        self.tokens += found.size // found.shape[-1]

    @property
    def shares(self) -> np.ndarray:
        """(experts,) the share of the tokens that chose each; the sum is how many experts a token gets."""
        return self.counts / max(self.tokens, 1)

    @property
    def effective(self) -> float:
        """2 to the entropy: so many experts, chosen equally often, would be as varied. From 1 to all of them."""
        chosen = self.counts[self.counts > 0] / max(self.counts.sum(), 1)
        return float(np.exp(-(chosen * np.log(chosen)).sum()))

    @property
    def unused(self) -> list[int]:
        """Experts that no token chose."""
        return np.flatnonzero(self.counts == 0).tolist()

    def busiest(self, n: int) -> list[int]:
        """The n that most tokens chose, the first of them first; none that nobody chose."""
        order = np.argsort(-self.counts, kind="stable")[:n]
        return [int(i) for i in order if self.counts[i]]


@contextmanager
def observe(model: LanguageModel) -> Generator[list[Choices]]:
    """Count what the layers of a model choose while this is entered; a `Choices` for each that has experts.

    Call `model` or `model.body` meanwhile: the token loop of `generate` repeats steps without them.
    """
    layers = [(i, layer.mlp) for i, layer in enumerate(model.body.layers)]
    found = [(i, mlp) for i, mlp in layers if isinstance(mlp, Experts)]
    choices = [Choices(i, np.zeros(experts.count, np.int64)) for i, experts in found]
    try:
        for (_, experts), layer in zip(found, choices, strict=True):
            experts.observer = layer.add
        yield choices
    finally:
        for _, experts in found:
            experts.observer = None
