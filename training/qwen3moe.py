"""A Qwen3-MoE of transformers as a GGUF file of the architecture qwen3moe."""

from __future__ import annotations

import gguf
import names
import numpy as np
import transformers
from names import Tensors

ARCHITECTURE = "qwen3moe"
Q6_K = ("token_embd", "attn_v", "ffn_down_exps")
F32 = ("norm", "ffn_gate_inp")
_FUSED = "mlp.experts.gate_up_proj"  # (experts, 2 rows, k), gate first
_HALVES = ("mlp.experts.gate_proj", "mlp.experts.up_proj")
_LAYER = {
    **names.ATTENTION,
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    _HALVES[0]: "ffn_gate_exps.weight",
    _HALVES[1]: "ffn_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}


def add_sizes(writer: gguf.GGUFWriter, config: transformers.Qwen3MoeConfig) -> None:
    """Add the metadata of this architecture."""
    writer.add_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def to_gguf(state: Tensors, _: transformers.Qwen3MoeConfig) -> dict[str, np.ndarray]:
    """The tensors of a state dict for a file, in the order of their layers."""
    halves = {}
    for name, array in state.items():
        if name.endswith(_FUSED):
            stem = name.removesuffix(_FUSED)
            halves |= zip(
                (stem + half for half in _HALVES), np.split(array, 2, axis=1), strict=True
            )
        else:
            halves[name] = array
    return names.to_gguf(halves, _LAYER)


def from_gguf(tensors: Tensors, _: transformers.Qwen3MoeConfig) -> dict[str, np.ndarray]:
    """Invert `to_gguf`."""
    found = names.from_gguf(tensors, _LAYER)
    for name in [name for name in found if name.endswith(_HALVES[0])]:
        stem = name.removesuffix(_HALVES[0])
        found[stem + _FUSED] = np.concatenate([found.pop(stem + half) for half in _HALVES], axis=1)
    return found
