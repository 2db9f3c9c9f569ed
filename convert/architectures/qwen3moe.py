"""Qwen 3 with experts (30B-A3B, 235B-A22B): head norms, no shared expert."""

from __future__ import annotations

from . import qwen2, qwen2moe


class Converter(qwen2moe.Converter):
    """As Qwen 2's with experts."""

    name = "qwen3moe"
    normed = True
    defaults = {
        **qwen2.Converter.defaults,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    }

    def feed_forward(self) -> dict[str, tuple[int, ...]]:
        return self.stacks()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        norms = {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        return super().shapes() | norms
