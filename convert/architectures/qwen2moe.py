"""Qwen 1.5 and 2 with experts: one more expert serves every token."""

from __future__ import annotations

from typing import Any, ClassVar

import gguf

from mlx_ferrum.models.base import BaseArgs

from ..modules import ATTENTION, PROJECTIONS
from . import qwen2

STACKS = ("mlp.gate", *(f"mlp.switch_mlp.{name}" for name in PROJECTIONS))
SHARED = ("mlp.shared_expert_gate", *(f"mlp.shared_expert.{name}" for name in PROJECTIONS))


class Converter(qwen2.Converter):
    """As Qwen 2's, with stacks of experts. normed: whether weights of chosen experts add up to 1."""

    name = "qwen2moe"
    written_as: ClassVar[tuple[str, str] | None] = ("Qwen2MoeForCausalLM", "qwen2_moe")
    lacks = qwen2.Converter.lacks | {"rope_scaling", "tied"}
    modules = (*ATTENTION, *STACKS, *SHARED)
    normed: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        dense = self.config.get("mlp_only_layers")
        if dense or self.size("decoder_sparse_step", 1) != 1:
            raise NotImplementedError(
                "config.json: mlp_only_layers, decoder_sparse_step: layers without experts are not supported"
            )
        if self.config.get("norm_topk_prob", False) is not self.normed:
            raise NotImplementedError(
                f"config.json: norm_topk_prob: {self.name} files mean {self.normed}, "
                f"found {not self.normed}"
            )

    @classmethod
    def describe(cls, args: BaseArgs) -> dict[str, Any]:
        assert args.experts is not None
        shared = {"shared_expert_intermediate_size": args.experts.shared_size}
        return {
            "intermediate_size": args.intermediate_size or args.experts.size,
            "moe_intermediate_size": args.experts.size,
            "num_experts": args.experts.count,
            "num_experts_per_tok": args.experts.routing.used,
            "norm_topk_prob": args.experts.routing.normalise,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(range(args.experts.dense_layers)),
            **(shared if args.experts.shared_size else {}),
        }

    def add(self, w: gguf.GGUFWriter) -> None:
        super().add(w)
        w.add_expert_feed_forward_length(self.size("moe_intermediate_size"))
        if "shared_expert_intermediate_size" in self.config:
            w.add_expert_shared_feed_forward_length(self.size("shared_expert_intermediate_size"))

    def feed_forward(self) -> dict[str, tuple[int, ...]]:
        h, shared = self.hidden, self.size("shared_expert_intermediate_size")
        return self.stacks() | {
            "ffn_gate_inp_shexp.weight": (1, h),
            "ffn_gate_shexp.weight": (shared, h),
            "ffn_up_shexp.weight": (shared, h),
            "ffn_down_shexp.weight": (h, shared),
        }

    def stacks(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the router and of the experts."""
        n, h, wide = self.experts, self.hidden, self.size("moe_intermediate_size")
        return {
            "ffn_gate_inp.weight": (n, h),
            "ffn_gate_exps.weight": (n, wide, h),
            "ffn_up_exps.weight": (n, wide, h),
            "ffn_down_exps.weight": (n, h, wide),
        }
