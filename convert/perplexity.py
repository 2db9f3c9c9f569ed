"""Perplexity of a model on a text, measured as llama-perplexity does: of each chunk, the second half is scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_ferrum.models.base import LanguageModel

from . import divergence

ROWS = 64  # positions whose logits exist at a time; a vocabulary of 262,144 makes 64 MB of them


@dataclass
class Loss:
    """Sums over the scored tokens: how many, negative log-likelihoods in nats, and their squares."""

    tokens: int = 0
    nats: float = 0.0
    squares: float = 0.0

    def add(self, nats: np.ndarray) -> None:
        """nats: (n,) float64, a number for each token. Raises ValueError if one is not finite."""
        if not np.isfinite(nats).all():
            bad = nats[~np.isfinite(nats)][0]
            raise ValueError(
                f"after {self.tokens} scored tokens: expected a finite loss, found {bad}"
            )
        self.tokens += nats.size
        self.nats += float(nats.sum())
        self.squares += float(np.square(nats).sum())

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def error(self) -> float:
        """Standard error of `mean`, as of independent tokens; infinite for a single one."""
        if self.tokens < 2:
            return math.inf
        variance = max(self.squares / self.tokens - self.mean**2, 0.0)
        return math.sqrt(variance / (self.tokens - 1))

    @property
    def perplexity(self) -> float:
        """exp of the mean."""
        return math.exp(self.mean)

    @property
    def perplexity_error(self) -> float:
        """The standard error of the perplexity, to first order."""
        return self.perplexity * self.error


def measure(model: LanguageModel, chunks: Iterable[Sequence[int]]) -> Loss:
    """The loss of the tokens in the second half of each chunk, but its first, each after all before it in the chunk.

    Raises ValueError for logits that make no finite loss, and if the model's file changed.
    """
    loss = Loss()
    for tokens in chunks:
        loss.add(losses(model, tokens, len(tokens) // 2))
        if model.check_file is not None:
            model.check_file()
    return loss


def losses(model: LanguageModel, tokens: Sequence[int], first: int) -> np.ndarray:
    """-log p(tokens[i + 1] | tokens[: i + 1]) for i from `first` to the last but one: (len(tokens) - 1 - first,)

    float64, in nats.
    """
    return np.concatenate(
        [divergence.rows(x, wanted).nats for x, wanted in logits(model, tokens, first)]
    )


def logits(
    model: LanguageModel, tokens: Sequence[int], first: int
) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
    """The logits at the positions from `first` to the last but one, and the tokens that follow them, in pieces.

    Each piece is (n, vocabulary) float32 and n tokens, n at most ROWS.
    """
    hidden = model.body(model.make_cache().batch(np.array([tokens])))  # (n, hidden)
    for start in range(first, len(tokens) - 1, ROWS):
        stop = min(start + ROWS, len(tokens) - 1)
        yield np.asarray(model.head(hidden[start:stop])), tokens[start + 1 : stop + 1]
