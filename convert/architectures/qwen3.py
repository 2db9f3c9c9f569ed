"""Qwen 3, dense: a norm on every query and key head, no biases."""

from __future__ import annotations

from ..architecture import Architecture
from ..modules import HEAD_NORMS
from . import qwen2


class Converter(qwen2.Converter):
    """As Qwen 2's, with head norms."""

    name = "qwen3"
    written_as = ("Qwen3ForCausalLM", "qwen3")
    biases = {}
    lacks = Architecture.lacks
    modules = (*qwen2.Converter.modules, *HEAD_NORMS)
    defaults = {**qwen2.Converter.defaults, "head_dim": 128}

    def layer(self, i: int) -> dict[str, tuple[int, ...]]:
        norms = {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        return super().layer(i) | norms
