"""Qwen 1.5 and 2 with experts (A2.7B, 57B-A14B): attention as in `qwen2`; one more expert serves every token.

The softmax is over all experts, and the weights of the chosen ones stay as they are.
"""

from __future__ import annotations

from typing import Any

from . import llama, qwen2
from .base import BaseArgs, Metadata
from .experts import expert_args, expert_size


class ModelArgs(BaseArgs):
    """The common sizes, with experts and a shared one."""

    @classmethod
    def fields(cls, m: Metadata) -> dict[str, Any]:
        fields = super().fields(m)
        dense = fields["intermediate_size"]
        shared = m.size("expert_shared_feed_forward_length", dense, zero=dense)
        experts = expert_args(m, size=expert_size(m), shared_size=shared, normalise=False)
        return fields | {"experts": experts}


class Model(llama.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    layer = qwen2.DecoderLayer
