"""Qwen 3.5 and 3.6 with experts (35B-A3B): delta nets between attention layers, a shared expert."""

from __future__ import annotations

from ..hybrid import Hybrid
from . import qwen2moe


class Converter(Hybrid, qwen2moe.Converter):
    """GGUF files call it `qwen35moe`."""

    name = "qwen35moe"
    written_as = None
    normed = True
    defaults = {**Hybrid.defaults, "norm_topk_prob": True}
