"""Where randomness comes from."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


class Keys:
    """Fresh randomness for MLX and NumPy: from `seed`, or from MLX's global generator when it is None."""

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}, expected 0 to 2**64 - 1")
        self._key = None if seed is None else mx.random.key(seed)
        self._generator = None if seed is None else np.random.default_rng(seed)

    def next(self) -> mx.array | None:
        """The next key; None asks MLX to use its global generator."""
        if self._key is None:
            return None
        self._key, key = mx.random.split(self._key)
        return key

    def generator(self) -> np.random.Generator:
        """NumPy's generator to draw from now."""
        if self._generator is not None:
            return self._generator
        return np.random.default_rng(np.asarray(mx.random.randint(0, 1 << 30, (4,))))
