"""Types of the options that operations take; backends, kernels and models share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

# activation.h numbers them in this order; "gelu" is the tanh form
Activation = Literal["silu", "gelu"]
Gating = Literal["softmax", "sigmoid"]
Norm = tuple[mx.array, float]  # an RMS norm: weight (k,), and epsilon
HeadNorms = tuple[mx.array, mx.array, float]  # weight (d,) of queries, of keys, and epsilon


@dataclass(frozen=True, eq=False)
class Delta:
    """Parameters of a gated delta rule over h value heads.

    decay: (h,), below 0; of softplus(a + dt) it makes the logarithm of the decay of a step
    dt: (h,), added to a
    key_heads: of queries and of keys, a divisor of h
    eps: added to the square sums by whose roots queries and keys are divided
    is_tiled: value head i reads key head i % key_heads, else i // (h / key_heads)
    """

    decay: mx.array
    dt: mx.array
    key_heads: int
    eps: float
    is_tiled: bool


@dataclass(frozen=True)
class Routing:
    """How a router chooses experts from its logits, and the weight of each expert.

    used: experts of each token
    gating: the function that turns the logits of all experts into scores
    normalise: divide the weights by their sum; with softmax gating this is the softmax over the chosen experts
    scale: multiplies the weights
    groups: of equal size, into which the experts are divided; a token chooses among the groups_used best groups,
        ranked by the sum of the two best scores in each
    """

    used: int
    gating: Gating = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1

    def check(self, experts: int) -> None:
        """Raises ValueError if a router of so many experts cannot choose in this way."""
        if not 1 <= self.used <= experts:
            raise ValueError(f"route: a token gets 1 to {experts} experts, found {self.used}")
        if self.groups < 1 or experts % self.groups:
            raise ValueError(f"route: {experts} experts do not make {self.groups} groups")
        if not 1 <= self.groups_used <= self.groups:
            raise ValueError(f"route: expected 1 to {self.groups} groups, found {self.groups_used}")
