"""Qwen 1.5 and 2 with experts: one more expert serves every token."""

from __future__ import annotations

from typing import ClassVar

import gguf

from . import qwen2


class Converter(qwen2.Converter):
    """As Qwen 2's, with stacks of experts. normed: whether weights of chosen experts add up to 1."""

    name = "qwen2moe"
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
