"""Tensors of a Qwen3-MoE under the names of GGUF, and back under those of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
_FUSED, _GATE, _UP = "mlp.experts.gate_up_proj", "ffn_gate_exps.weight", "ffn_up_exps.weight"
_HEAD = "lm_head.weight"  # is the embeddings


def to_gguf(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict, gate and up fused as (experts, 2 rows, k), as GGUF's tensors, in the order of their layers."""
    found = {}
    for name, array in state.items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if layer is None:
            if name != _HEAD:
                found[_GLOBAL[name]] = array
        elif layer[2] == _FUSED:
            gate, up = np.split(array, 2, axis=1)
            found[f"blk.{layer[1]}.{_GATE}"], found[f"blk.{layer[1]}.{_UP}"] = gate, up
        else:
            found[f"blk.{layer[1]}.{_LAYER[layer[2]]}"] = array
    return found


def from_gguf(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_gguf`."""
    whole = {gguf: name for name, gguf in _GLOBAL.items()}
    parts = {gguf: name for name, gguf in _LAYER.items()} | {_GATE: _FUSED}
    found = {_HEAD: tensors["token_embd.weight"]}
    for name, array in tensors.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        if layer is None:
            found[whole[name]] = array
            continue
        if layer[2] == _UP:
            continue
        if layer[2] == _GATE:
            array = np.concatenate([array, tensors[f"blk.{layer[1]}.{_UP}"]], axis=1)
        found[f"model.layers.{layer[1]}.{parts[layer[2]]}"] = array
    return found
