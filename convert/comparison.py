"""What a comparison of models measured: numbers for each scored token and each tensor, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .perplexity import Loss

PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)


class Estimate(NamedTuple):
    """A value and its standard error, as of independent tokens; the error is infinite for a single token."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.6f} +- {self.error:.6f}"

    @classmethod
    def mean(cls, values: np.ndarray) -> Estimate:
        """The mean of values (n,), with its error."""
        n = values.size
        error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return cls(float(values.mean()), error)


def _perplexity(nats: np.ndarray) -> Estimate:
    loss = Loss()
    loss.add(nats)
    return Estimate(loss.perplexity, loss.perplexity_error)


@dataclass(frozen=True)
class TensorError:
    """How a tensor of another model differs from the base's.

    shape: as in NumPy, rows last but one
    base_type, type: ggml types; base_nbytes, nbytes: sizes in the files, in bytes
    squares: sum of (b - a)²; base_squares: sum of a²; other_squares: sum of b²; product: sum of a b
    largest: the largest |b - a|
    The sums are None if the package cannot decode one of the types.
    """

    name: str
    shape: tuple[int, ...]
    base_type: str
    type: str
    base_nbytes: int
    nbytes: int
    squares: float | None = None
    base_squares: float = 0.0
    other_squares: float = 0.0
    product: float = 0.0
    largest: float = 0.0

    @property
    def relative(self) -> float | None:
        """rms(b - a) / rms(a); infinite if only a is zero, None if it is not known."""
        return None if self.squares is None else relative(self.squares, self.base_squares)

    @property
    def is_finite(self) -> bool:
        """Whether the weights of both are known and finite."""
        return self.squares is not None and math.isfinite(self.squares + self.base_squares)

    @property
    def cosine(self) -> float | None:
        """Of the angle between the tensors as vectors; 1 for equal ones, NaN if one is zero."""
        if self.squares is None:
            return None
        if self.squares == 0:
            return 1.0
        norm = math.sqrt(self.base_squares) * math.sqrt(self.other_squares)
        return self.product / norm if norm > 0 else math.nan


def relative(squares: float, base_squares: float) -> float:
    """The root of squares / base_squares; 0 where squares are, NaN where one is not finite."""
    if squares == 0:
        return 0.0
    if not math.isfinite(squares + base_squares):
        return math.nan
    return math.sqrt(squares / base_squares) if base_squares > 0 else math.inf


@dataclass(frozen=True, repr=False)
class TensorErrors:
    """The tensors of another model beside the base's.

    errors: of the tensors that both have in one shape, in the order of the base
    only_base, only_other: names that the other one lacks
    reshaped: name -> shape in the base, and in the other
    """

    errors: list[TensorError]
    only_base: list[str] = field(default_factory=list)
    only_other: list[str] = field(default_factory=list)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The number of tensors, and the worst of those whose error is finite."""
        known = [e for e in self.worst() if e.is_finite]
        worst = f", worst {known[0].name} with {known[0].relative:.3%}" if known else ""
        return f"TensorErrors({len(self.errors)} tensors{worst})"

    def worst(self) -> list[TensorError]:
        """By relative error, largest first; those that are not known or NaN come before all."""

        def key(error: TensorError) -> float:
            value = error.relative
            return math.inf if value is None or math.isnan(value) else value

        return sorted(self.errors, key=key, reverse=True)

    @cached_property
    def total(self) -> float:
        """The sum of the squared relative errors that are finite."""
        return sum(e.relative**2 for e in self.errors if _is_finite(e.relative) and e.relative)

    def share(self, error: TensorError) -> float:
        """The part that a tensor has in `total`, 0 to 1; NaN if its error is not known."""
        value = error.relative
        if value is None or not math.isfinite(value):
            return math.nan
        return value**2 / self.total if self.total > 0 else 0.0


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Model:
    """A model that is compared. name: as it was given; nbytes: of its tensors; weights: how many numbers they hold."""

    name: str
    nbytes: int
    weights: int

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True, repr=False)
class Divergence:
    """How another model's predictions differ from the base's: a number for each of n scored tokens.

    nats, base_nats: (n,) float64, -log of the probability of the text's token, by the other and by the base
    kls: (n,) float64, KL(base || other) over the vocabulary in nats, before the token
    agrees: (n,) bool, whether both find the same token the most likely
    """

    nats: np.ndarray
    base_nats: np.ndarray
    kls: np.ndarray
    agrees: np.ndarray

    @property
    def tokens(self) -> int:
        """How many tokens are scored, n."""
        return self.nats.size

    @property
    def perplexity(self) -> Estimate:
        """exp of the mean of `nats`."""
        return _perplexity(self.nats)

    @property
    def base_perplexity(self) -> Estimate:
        """exp of the mean of `base_nats`."""
        return _perplexity(self.base_nats)

    @property
    def ratio(self) -> Estimate:
        """perplexity / base_perplexity. Its error is that of the paired difference, smaller than theirs."""
        mean = Estimate.mean(self.nats - self.base_nats)
        return Estimate(math.exp(mean.value), math.exp(mean.value) * mean.error)

    @property
    def kl(self) -> Estimate:
        """The mean KL divergence in nats."""
        return Estimate.mean(self.kls)

    def percentiles(self, percents: Sequence[float] = PERCENTS) -> dict[float, float]:
        """Percent -> the KL in nats that so many percent of the tokens do not exceed, interpolated."""
        return dict(zip(percents, np.percentile(self.kls, percents).tolist(), strict=True))

    @property
    def agreement(self) -> Estimate:
        """The share of the tokens for which both find the same token the most likely, 0 to 1."""
        share, n = float(self.agrees.mean()), self.tokens
        return Estimate(share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.inf)

    @property
    def probability_rms(self) -> Estimate:
        """The root mean square difference of the probabilities of the text's tokens, 0 to 1."""
        mean = Estimate.mean((np.exp(-self.nats) - np.exp(-self.base_nats)) ** 2)
        root = math.sqrt(mean.value)
        return Estimate(root, 0.5 * mean.error / root if root > 0 else 0.0)

    def __repr__(self) -> str:
        return f"Divergence({self.tokens} tokens, KL {self.kl}, perplexity {self.perplexity})"


@dataclass(frozen=True)
class Text:
    """What the models read. chunks: how many were read, of `size` tokens each; of: how many were to be read."""

    name: str
    chunks: int
    size: int
    of: int


@dataclass(frozen=True)
class Other:
    """A model beside the base. divergence: None without a text; tensors: None if they were not compared."""

    model: Model
    divergence: Divergence | None
    tensors: TensorErrors | None


@dataclass(frozen=True, repr=False)
class Comparison:
    """A base and other models of the same vocabulary. text: None if only tensors were compared."""

    base: Model
    others: list[Other]
    text: Text | None = None

    def __repr__(self) -> str:
        lines = [f"Comparison with {self.base.name} ({self.base.nbytes / 1e6:,.1f} MB)"]
        for other in self.others:
            line = f"  {other.model.name}: {other.model.nbytes / 1e6:,.1f} MB"
            if other.divergence is not None:
                line += f", KL {other.divergence.kl}, top-1 {other.divergence.agreement.value:.2%}"
            lines.append(line)
        return "\n".join(lines)
