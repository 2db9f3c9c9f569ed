"""Where randomness comes from."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .checks import check_integer


class Keys:
    """Random numbers for MLX and NumPy: from `seed`, or from MLX's global generator when it is None.

    Raises:
        ValueError: the seed is not an integer from 0 to 2**64 - 1.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None:
            check_integer("seed", seed, 0, 2**64 - 1)
        self._key = None if seed is None else mx.random.key(seed)
        self._generator = None if seed is None else np.random.default_rng(seed)

    def next(self) -> mx.array | None:
        """The next key; None asks MLX to use its global generator."""
        if self._key is None:
            return None
        self._key, key = mx.random.split(self._key)
        return key

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """Float64 numbers in [0, 1), of 48 random bits or more."""
        if self._generator is not None:
            return self._generator.random(shape)
        high, low = np.asarray(mx.random.uniform(shape=(2, *shape)), np.float64)  # of 24 bits each
        return (np.floor(high * 2**24) + low) / 2**24
