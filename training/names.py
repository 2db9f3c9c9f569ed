"""Tensors between their names in transformers' models and in GGUF files, whatever the architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]

WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
ATTENTION = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}
_HEAD = "lm_head.weight"  # shares the weights of the embeddings


def to_gguf(state: Tensors, layer: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Rename a state dict to GGUF. layer: names inside a layer, transformers' to GGUF's."""
    found = {}
    for name, array in state.items():
        parts = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if parts is not None:
            found[f"blk.{parts[1]}.{layer[parts[2]]}"] = array
        elif name != _HEAD:
            found[WHOLE[name]] = array
    return found


def from_gguf(tensors: Tensors, layer: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Invert `to_gguf`."""
    whole = {gguf: name for name, gguf in WHOLE.items()}
    inner = {gguf: name for name, gguf in layer.items()}
    found = {_HEAD: tensors["token_embd.weight"]}
    for name, array in tensors.items():
        parts = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        key = whole[name] if parts is None else f"model.layers.{parts[1]}.{inner[parts[2]]}"
        found[key] = array
    return found
