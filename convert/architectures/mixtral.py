"""Mixtral: Mistral with experts; GGUF files call it `llama`, too."""

from __future__ import annotations

from typing import Any

from mlx_ferrum.models.base import BaseArgs

from ..modules import ATTENTION, PROJECTIONS
from . import llama, mistral

EXPERTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}  # by their names in mlx_lm


class Converter(mistral.Converter):
    """As Mistral's, with a stack of experts instead of the feed-forward layer."""

    defaults = {
        **mistral.Converter.defaults,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
    }
    writes_head_dim = False
    written_as = ("MixtralForCausalLM", "mixtral")
    biases = {}
    lacks = llama.Converter.lacks | {"head_dim", "rope_scaling"}
    modules = (
        *ATTENTION,
        "block_sparse_moe.gate",
        *(f"block_sparse_moe.switch_mlp.{name}" for name in PROJECTIONS),
    )

    @classmethod
    def describe(cls, args: BaseArgs) -> dict[str, Any]:
        assert args.experts is not None
        return {
            "intermediate_size": args.experts.size,
            "num_local_experts": args.experts.count,
            "num_experts_per_tok": args.experts.routing.used,
        }

    def renamed(self, name: str) -> str | None:
        stack, switch, rest = name.partition(".switch_mlp.")
        part, dot, end = rest.partition(".")
        return super().renamed(
            f"{stack}.experts.{EXPERTS.get(part, part)}{dot}{end}" if switch else name
        )

    def feed_forward(self) -> dict[str, tuple[int, ...]]:
        n, h, wide = self.experts, self.hidden, self.size("intermediate_size")
        return {
            "ffn_gate_inp.weight": (n, h),
            "ffn_gate_exps.weight": (n, wide, h),
            "ffn_up_exps.weight": (n, wide, h),
            "ffn_down_exps.weight": (n, h, wide),
        }
