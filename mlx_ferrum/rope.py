"""Rotary position frequencies from a file's metadata: plain, linear, Llama-3 factors and YaRN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np


class Rope(NamedTuple):
    """frequencies: (dims / 2,) float32, radians a position; magnitude: factor on the rotated values."""

    frequencies: mx.array
    magnitude: float = 1.0


@dataclass(frozen=True)
class RopeArgs:
    """What a file says of its rotary embedding, in GGUF's words (`{architecture}.rope.…`)."""

    dims: int
    base: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        if self.dims < 2 or self.dims % 2:
            raise ValueError(f"rope.dimension_count must be even and positive, found {self.dims}")
        if not (math.isfinite(self.base) and self.base > 1):
            raise ValueError(f"rope.freq_base must be a number above 1, found {self.base}")
        for name in ("factor", "attention_factor", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"rope {name} must be a positive number, found {value}")
        if self.scaling not in ("none", "linear", "yarn"):
            raise NotImplementedError(
                f"rope.scaling.type {self.scaling!r} is not supported; known: none, linear, yarn"
            )
        if self.scaling == "yarn" and self.original_context <= 0:
            raise ValueError("YaRN needs a positive rope.scaling.original_context_length")

    def rope(self, factors: np.ndarray | None = None) -> Rope:
        """The frequencies; factors: (dims / 2,) divide them (`rope_freqs.weight` of Llama 3)."""
        pairs = np.arange(self.dims // 2)
        plain = self.base ** (-2.0 * pairs / self.dims)
        if factors is not None:
            plain = plain / factors
        magnitude = self.attention_factor
        if self.scaling == "linear":
            plain = plain / self.factor
        elif self.scaling == "yarn":
            keep = self._kept()
            plain = plain * keep + plain / self.factor * (1 - keep)
            magnitude *= 1 + 0.1 * math.log(self.factor)
        return Rope(mx.array(plain.astype(np.float32)), magnitude)

    def _kept(self) -> np.ndarray:
        """(dims / 2,): 1 where YaRN leaves a frequency alone, 0 where it divides it (arXiv:2309.00071, section 3.2)."""
        low = max(math.floor(self._pair_that_turns(self.beta_fast)), 0)
        high = min(math.ceil(self._pair_that_turns(self.beta_slow)), self.dims - 1)
        ramp = (np.arange(self.dims // 2) - low) / max(high - low, 0.001)
        return 1 - np.clip(ramp, 0, 1)

    def _pair_that_turns(self, turns: float) -> float:
        """The pair, as a real number, that makes so many turns within the original context."""
        wavelength = self.original_context / (turns * 2 * math.pi)
        return self.dims * math.log(wavelength) / (2 * math.log(self.base))
