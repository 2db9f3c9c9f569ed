"""What the routers of a model choose, counted while it runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.models.expert_layers import with_experts
from mlx_ferrum.nn import Experts, Observer


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

    def add(self, logits: ops.Array, ids: ops.Array, weights: ops.Array) -> None:
        """An observer of `nn.Experts`. logits: (..., experts), ids and weights: (..., used)"""
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
    """Count what the layers of a model choose while this is entered; a `Choices` for each that has experts."""
    layers = with_experts(model)
    choices = [Choices(i, np.zeros(experts.count, np.int64)) for i, experts in layers]
    with observers(layers, [choice.add for choice in choices]):
        yield choices


@contextmanager
def observers(layers: Sequence[tuple[int, Experts]], given: Sequence[Observer]) -> Generator[None]:
    """While entered, each layer has its observer, in every step."""
    try:
        for (_, experts), observer in zip(layers, given, strict=True):
            experts.observer = observer
        with ops.unrepeated():
            yield
    finally:
        for _, experts in layers:
            experts.observer = None
