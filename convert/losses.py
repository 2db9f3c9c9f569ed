"""Errors of a conversion: squared errors of weights, by the old and the new type of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Errors:
    """Squared errors of tensors, by their old and new type.

    names: of the tensors; sums: of squared errors and of squared weights
    """

    names: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    sums: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def add(self, name: str, source: str, becomes: str, sums: Sequence[float] | np.ndarray) -> None:
        """Count some weights of a tensor, if they lost anything."""
        if sums[0]:
            self.names.setdefault((source, becomes), set()).add(name)
            self.sums.setdefault((source, becomes), np.zeros(2))
            self.sums[source, becomes] += sums

    def notices(self) -> Iterator[str]:
        """One line for each kind of change."""
        for (source, becomes), names in self.names.items():
            error, weights = self.sums[source, becomes]
            what = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
            yield f"{what} from {source} to {becomes}: relative error {np.sqrt(error / weights):.2g}"


def squares(x: np.ndarray) -> float:
    """The sum of squares."""
    return float(np.square(x, dtype=np.float64).sum())
