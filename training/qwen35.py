"""A dense Qwen3.5 of transformers as a GGUF file of the architecture qwen35."""

from __future__ import annotations

import gguf
import names
import numpy as np
import transformers
from names import Tensors

ARCHITECTURE = "qwen35"
Q6_K = ("token_embd", "attn_v", "attn_qkv", "ffn_down")
F32 = ("norm", "ssm_a", "ssm_dt", "ssm_beta", "ssm_conv1d")
_LAYER = {
    **names.ATTENTION,
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_ONE_PER_HEAD = ("ssm_alpha", "ssm_beta", "ssm_dt", "ssm_a")


def add_sizes(writer: gguf.GGUFWriter, config: transformers.Qwen3_5TextConfig) -> None:
    """Add the metadata of this architecture."""
    rope = config.rope_parameters
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(int(config.head_dim * rope["partial_rotary_factor"]))
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_value_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)


def to_gguf(state: Tensors, config: transformers.Qwen3_5TextConfig) -> dict[str, np.ndarray]:
    """The tensors of a state dict for a file: whole norms, -A, value heads tiled over the key heads."""
    key_heads = config.linear_num_key_heads
    found = {}
    for name, array in names.to_gguf(state, _LAYER).items():
        if "norm" in name and "ssm" not in name:
            array = array + 1
        elif name.endswith("ssm_a"):
            array = -np.exp(array)
        elif "ssm_conv1d" in name:
            array = array.squeeze(1)
        found[name] = _reorder(name, array, config, (key_heads, -1))
    return found


def from_gguf(tensors: Tensors, config: transformers.Qwen3_5TextConfig) -> dict[str, np.ndarray]:
    """Invert `to_gguf`."""
    found = {}
    for name, array in tensors.items():
        array = _reorder(name, array, config, (-1, config.linear_num_key_heads))
        if "norm" in name and "ssm" not in name:
            array = array - 1
        elif name.endswith("ssm_a"):
            array = np.log(-array)
        elif "ssm_conv1d" in name:
            array = array[:, None]
        found[name] = array
    return names.from_gguf(found, _LAYER)


def _reorder(
    name: str, array: np.ndarray, config: transformers.Qwen3_5TextConfig, grid: tuple[int, int]
) -> np.ndarray:
    """A tensor with its value heads, which form `grid`, in the order of the transposed grid."""
    size = config.linear_value_head_dim
    if any(part in name for part in _ONE_PER_HEAD):
        return _transpose_heads(array, 1, grid)
    if "attn_gate" in name:
        return _transpose_heads(array, size, grid)
    if "ssm_out" in name:
        return _transpose_heads(array.T, size, grid).T
    if "attn_qkv" in name or "ssm_conv1d" in name:
        values = 2 * config.linear_num_key_heads * config.linear_key_head_dim
        return np.concatenate([array[:values], _transpose_heads(array[values:], size, grid)])
    return array


def _transpose_heads(array: np.ndarray, size: int, grid: tuple[int, int]) -> np.ndarray:
    """array: (heads * size, ...) of heads in a grid -> the same of the transposed grid."""
    heads = array.reshape(-1, size, *array.shape[1:])
    if grid[0] == -1:
        grid = (len(heads) // grid[1], grid[1])
    order = np.arange(len(heads)).reshape(grid).T.ravel()
    return np.ascontiguousarray(heads[order].reshape(array.shape))
