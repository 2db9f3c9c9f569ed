"""What may come next in a text, as the engine sees it; `mlx_ferrum.structured` has such constraints."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.sample.arrays import Array


class Follower(Protocol):
    """Where one text is in its constraint. What its functions raise ends the text."""

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow; the text ends then, without an end token."""

    def fill(self, bits: np.ndarray) -> None:
        """Set the bits of the tokens that may come next: int32 (ceil(vocab / 32),), the lowest bit first."""

    def accept(self, token: int) -> None:
        """Take the next token."""

    def forced(self) -> list[int]:
        """Tokens that have to come next, or none; they are not taken yet."""


class Constraint(Protocol):
    """What texts follow."""

    def begin(self) -> Follower:
        """The state of a new text."""


def constrained(logits: Array, follower: Follower, *, is_lazy: bool) -> Array:
    """Logits (1, vocab) with -inf for the tokens that may not come next.

    is_lazy: whether the backend has MLX's arrays
    """
    bits = np.zeros((1, -(-logits.shape[-1] // 32)), np.int32)
    follower.fill(bits[0])
    if is_lazy:
        return ops.mask_logits(mx.array(logits), mx.array(bits))
    return ops.mask_logits(np.asarray(logits), bits)
