"""Logits that no token can be chosen from are an error that says what was found."""

from __future__ import annotations

import math

import numpy as np

from mlx_ferrum.sample.arrays import Array


class LogitRange:
    """The smallest and the largest of a step's logits; on a lazy backend not yet computed.

    extent: (1, 2), NaN where a logit is
    tokens: how many the model had read
    processed: whether logit processors have changed them
    """

    def __init__(self, extent: Array, tokens: int, vocab_size: int, processed: bool) -> None:
        self.extent, self.tokens, self.processed = extent, tokens, processed
        self.vocab_size = vocab_size

    def check(self) -> None:
        """Wait for the numbers. Raises ValueError for a NaN, an infinite or no finite logit, or all equal ones."""
        low, high = np.asarray(self.extent)[0].tolist()
        found = _fault(low, high, self.vocab_size, self.processed)
        if found is None:
            return
        if self.processed:
            raise ValueError(f"after {self.tokens} tokens {found} once the logit processors ran")
        raise ValueError(
            f"after {self.tokens} tokens {found}: the model's file may be damaged or incomplete, "
            "or a number overflowed"
        )


def logit_range(extent: Array, tokens: int, vocab_size: int, processed: bool = False) -> LogitRange:
    """The range of logits, checked at once where nothing has to be waited for."""
    found = LogitRange(extent, tokens, vocab_size, processed)
    if isinstance(extent, np.ndarray):
        found.check()
    return found


def _fault(low: float, high: float, vocab_size: int, processed: bool) -> str | None:
    """What is wrong with logits from `low` to `high`; processors may make all alike, or all but one -inf."""
    if math.isnan(high):
        return "a logit is NaN"
    if high == math.inf:
        return "a logit is infinite"
    if high == -math.inf:
        return "every logit is -inf, which leaves no token to choose,"
    if low == high and vocab_size > 1 and not processed:
        return f"all logits are equal ({low + 0.0:g}), as zeroed weights make them"
    return None
