"""What converters say in both directions: names of modules in transformers and mlx_lm, changes that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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

    rows: whether rows change places, so that it applies to rows in any form; otherwise it applies to float32 values
    """

    there: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    rows: bool = False
