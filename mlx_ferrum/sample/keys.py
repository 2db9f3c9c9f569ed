"""Where randomness comes from."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np

from .checks import check_integer


class _Thread(threading.local):
    """The generator of each thread but the main one.

    MLX's generators of other threads all start alike, whatever `mx.random.seed` was told: all would draw the same.
    """

    def __init__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self.generator = None if is_main else np.random.default_rng()


_thread = _Thread()


class Keys:
    """Random numbers for MLX and NumPy, in any thread.

    seed: None for MLX's global generator in the main thread, and the system's entropy in others

    Raises:
        ValueError: the seed is not an integer from 0 to 2**64 - 1.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None:
            check_integer("seed", seed, 0, 2**64 - 1)
        self._seed = seed
        self._generator = None if seed is None else np.random.default_rng(seed)

    def seek(self, position: int) -> None:
        """From now on give the numbers of a position, which depend on it and the seed alone. Without a seed: any."""
        if self._seed is not None:
            self._generator = np.random.default_rng([self._seed, position])

    def next(self) -> mx.array | None:
        """The next key; None asks MLX to use its global generator."""
        own = self._own()
        # made of numbers, so never lazy: the next draw may be another thread's
        return None if own is None else mx.array(own.integers(0, 1 << 32, 2, np.uint32))

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """Float64 numbers in [0, 1), of 48 random bits or more."""
        own = self._own()
        if own is not None:
            return own.random(shape)
        high, low = np.asarray(mx.random.uniform(shape=(2, *shape)), np.float64)  # of 24 bits each
        return (np.floor(high * 2**24) + low) / 2**24

    def _own(self) -> np.random.Generator | None:
        """The generator to use in the place of MLX's."""
        return _thread.generator if self._generator is None else self._generator
