"""What converters say in both directions: names of modules in transformers and mlx_lm, changes that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlx_ferrum.blocks import Block

OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
ATTENTION = (
    "input_layernorm",
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    "post_attention_layernorm",
)
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MLP = tuple(f"mlp.{name}" for name in PROJECTIONS)


@dataclass(frozen=True)
class Change:
    """How GGUF files hold the values of a tensor, and the way back.

    rows: whether rows change places, so that it applies to rows in any form
    group: how many columns change places together, so that it applies to rows of blocks that lie within a group
    Otherwise it applies to float32 values.
    """

    there: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    rows: bool = False
    group: int = 0

    def keeps(self, block: type[Block]) -> bool:
        """Whether it applies to rows of these blocks."""
        return self.rows or (self.group > 0 and self.group % block.weights == 0)
