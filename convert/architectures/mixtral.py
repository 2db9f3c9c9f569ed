"""Mixtral: Mistral with experts; GGUF files call it `llama`, too."""

from __future__ import annotations

from . import mistral


class Converter(mistral.Converter):
    """As Mistral's, with a stack of experts instead of the feed-forward layer."""

    defaults = {
        **mistral.Converter.defaults,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
    }
    writes_head_dim = False

    def feed_forward(self) -> dict[str, tuple[int, ...]]:
        n, h, wide = self.experts, self.hidden, self.size("intermediate_size")
        return {
            "ffn_gate_inp.weight": (n, h),
            "ffn_gate_exps.weight": (n, wide, h),
            "ffn_up_exps.weight": (n, wide, h),
            "ffn_down_exps.weight": (n, h, wide),
        }
