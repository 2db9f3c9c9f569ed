"""Qwen 3.5 and 3.6 with experts (35B-A3B): delta nets between attention layers, a shared expert."""

from __future__ import annotations

from ..hybrid import DELTA_NET, Hybrid
from ..modules import ATTENTION, HEAD_NORMS
from . import qwen2moe


class Converter(Hybrid, qwen2moe.Converter):
    """GGUF files call it `qwen35moe`."""

    name = "qwen35moe"
    written_as = ("Qwen3_5MoeForCausalLM", "qwen3_5_moe")
    modules = (*ATTENTION, *HEAD_NORMS, *DELTA_NET, *qwen2moe.STACKS, *qwen2moe.SHARED)
    normed = True
    defaults = {**Hybrid.defaults, "norm_topk_prob": True}
