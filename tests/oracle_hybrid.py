"""How `oracle` reads hybrid models: their configuration, their names, the order of their value heads."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import transformers

MODELS = {
    "qwen35": (transformers.Qwen3_5TextConfig, transformers.Qwen3_5ForCausalLM),
    "qwen35moe": (transformers.Qwen3_5MoeTextConfig, transformers.Qwen3_5MoeForCausalLM),
    "qwen3next": (transformers.Qwen3NextConfig, transformers.Qwen3NextForCausalLM),
}
LAYER_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_in": "linear_attn.in_proj_qkvz",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
VECTORS = {"ssm_dt": "linear_attn.dt_bias", "ssm_a": "linear_attn.A_log"}  # no .weight, no .bias


def config(metadata: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Arguments of the configuration class, beside those of every model."""
    layers = metadata["block_count"] - metadata.get("nextn_predict_layers", 0)
    interval = metadata.get("full_attention_interval", 4)
    flags = metadata.get("attention.recurrent_layers")
    recurrent = [(i + 1) % interval != 0 for i in range(layers)] if flags is None else flags
    kv_heads = metadata["attention.head_count_kv"]
    return {
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads if isinstance(kv_heads, int) else max(kv_heads),
        "layer_types": [
            "linear_attention" if flag else "full_attention" for flag in recurrent[:layers]
        ],
        "num_experts": metadata.get("expert_count", 0),
        "linear_num_key_heads": metadata["ssm.group_count"],
        "linear_num_value_heads": metadata["ssm.time_step_rank"],
        "linear_key_head_dim": metadata["ssm.state_size"],
        "linear_value_head_dim": metadata["ssm.state_size"],
        "linear_conv_kernel_dim": metadata["ssm.conv_kernel"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": metadata["rope.freq_base"],
            "partial_rotary_factor": metadata["rope.dimension_count"] / head_dim,
            "mrope_section": metadata.get("rope.dimension_sections", [0])[:3],
        },
    }


def trunk(arch: str, sizes: Any, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the model itself, with q, k, v and z of a key head together where transformers wants that."""
    found = {}
    for name, array in tensors.items():
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer is not None and int(layer[1]) >= sizes.num_hidden_layers:
            continue
        if arch == "qwen3next" and name.endswith("attn_qkv.weight"):
            gate = tensors[name.replace("qkv", "gate")]
            found[name.replace("attn_qkv", "ssm_in")] = _together(array, gate, sizes)
        elif arch != "qwen3next" or not name.endswith("attn_gate.weight"):
            found[name] = array
    return found


def _together(qkv: np.ndarray, z: np.ndarray, sizes: Any) -> np.ndarray:
    """Rows of q, k, v and z by their key heads."""
    keys = sizes.linear_num_key_heads
    wide = keys * sizes.linear_key_head_dim
    parts = [*np.split(qkv, [wide, 2 * wide]), z]
    rows = [part.reshape(keys, -1, part.shape[-1]) for part in parts]
    return np.concatenate(rows, axis=1).reshape(-1, z.shape[-1])


def arranged(arch: str, stem: str, array: np.ndarray, sizes: Any) -> np.ndarray:
    """A tensor of the file as transformers has it. stem: its name in a layer, without `.weight`."""
    if stem.endswith("norm") and stem != "ssm_norm":
        return array - 1
    if stem == "ssm_a":
        array = np.log(-array)
    if stem == "ssm_conv1d":
        array = array[:, None]
    return array if arch == "qwen3next" else _untiled(stem, array, sizes)


def _untiled(stem: str, array: np.ndarray, sizes: Any) -> np.ndarray:
    if stem in ("ssm_a", "ssm_dt", "ssm_alpha", "ssm_beta"):
        return _beside_key_heads(array, 1, sizes)
    size = sizes.linear_value_head_dim
    if stem == "attn_gate":
        return _beside_key_heads(array, size, sizes)
    if stem == "ssm_out":
        return _beside_key_heads(array.T, size, sizes).T
    if stem in ("attn_qkv", "ssm_conv1d"):
        start = 2 * sizes.linear_num_key_heads * sizes.linear_key_head_dim
        return np.concatenate([array[:start], _beside_key_heads(array[start:], size, sizes)])
    return array


def _beside_key_heads(array: np.ndarray, size: int, sizes: Any) -> np.ndarray:
    """(value heads * size, ...), from heads tiled over the key heads to those of a key head in a row."""
    heads = array.reshape(-1, sizes.linear_num_key_heads, size, *array.shape[1:])
    return heads.swapaxes(0, 1).reshape(array.shape)
