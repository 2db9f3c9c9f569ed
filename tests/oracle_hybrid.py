"""How `oracle` reads Qwen 3.5, dense and with experts: its configuration, its names, its order of value heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers

MODELS = {
    "qwen35": (transformers.Qwen3_5TextConfig, transformers.Qwen3_5ForCausalLM),
    "qwen35moe": (transformers.Qwen3_5MoeTextConfig, transformers.Qwen3_5MoeForCausalLM),
}
LAYER_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
VECTORS = {"ssm_dt": "linear_attn.dt_bias", "ssm_a": "linear_attn.A_log"}  # no .weight, no .bias


def config(metadata: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Arguments of the configuration class, beside those of every model."""
    return {
        "full_attention_interval": metadata.get("full_attention_interval", 4),
        "linear_num_key_heads": metadata["ssm.group_count"],
        "linear_num_value_heads": metadata["ssm.time_step_rank"],
        "linear_key_head_dim": metadata["ssm.state_size"],
        "linear_value_head_dim": metadata["ssm.state_size"],
        "linear_conv_kernel_dim": metadata["ssm.conv_kernel"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": metadata["rope.freq_base"],
            "partial_rotary_factor": metadata["rope.dimension_count"] / head_dim,
            "mrope_section": metadata["rope.dimension_sections"][:3],
        },
    }


def arranged(stem: str, array: np.ndarray, sizes: Any) -> np.ndarray:
    """A tensor of the file as transformers has it. stem: its name in a layer, without `.weight`."""
    if stem.endswith("norm") and stem != "ssm_norm":
        return array - 1
    if stem == "ssm_a":
        array = np.log(-array)
    if stem == "ssm_conv1d":
        array = array[:, None]
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
