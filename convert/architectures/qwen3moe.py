"""Qwen 3 with experts (30B-A3B, 235B-A22B): head norms, no shared expert."""

from __future__ import annotations

from ..architecture import Architecture
from ..modules import ATTENTION, HEAD_NORMS
from . import qwen2moe


class Converter(qwen2moe.Converter):
    """As Qwen 2's with experts."""

    name = "qwen3moe"
    written_as = ("Qwen3MoeForCausalLM", "qwen3_moe")
    biases = {}
    lacks = Architecture.lacks | {"rope_scaling"}
    modules = (*ATTENTION, *HEAD_NORMS, *qwen2moe.STACKS)
    normed = True

    def feed_forward(self) -> dict[str, tuple[int, ...]]:
        return self.stacks()

    def layer(self, i: int) -> dict[str, tuple[int, ...]]:
        norms = {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        return super().layer(i) | norms
