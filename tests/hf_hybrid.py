"""Small Hugging Face folders of hybrid models, gated delta nets between attention layers, with made-up weights.

Weights are multiples of 1/64 within ±2, so they are the same in bfloat16 and float32, and so are those plus 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hf_folders
import numpy as np

ROPE = {"partial_rotary_factor": 0.25, "rope_theta": 1e7, "rope_type": "default"}
SIZES: dict[str, Any] = {
    **hf_folders.SIZES,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "tie_word_embeddings": False,
    "rope_parameters": ROPE,
}
EXPERTS = {
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3next": {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "full_attention_interval": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **EXPERTS,
    },
    "qwen35": {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "attn_output_gate": True,
        "tie_word_embeddings": True,
    },
    "qwen35moe": {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "model_type": "qwen3_5_moe_text",
        "intermediate_size": None,
        **EXPERTS,
    },
}
MTP_NORMS = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
# What golden files have: each architecture with Hv / Hk of 1, 2 and 3 among them, and layers by kind and by interval.
LAYERS = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
MROPE: dict[str, Any] = {"mrope_section": [2, 1, 1], "mrope_interleaved": True, **ROPE}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3next": ("qwen3next", {}),
    "qwen3next-3": ("qwen3next", {"linear_num_value_heads": 6, "layer_types": LAYERS}),
    "qwen35": ("qwen35", {}),
    "qwen35-1": ("qwen35", {"linear_num_value_heads": 2, "tie_word_embeddings": False}),
    "qwen35-3": ("qwen35", {"linear_num_value_heads": 6, "rope_parameters": MROPE}),
    "qwen35moe": ("qwen35moe", {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}),
    "qwen35moe-3": ("qwen35moe", {"linear_num_value_heads": 6, "layer_types": LAYERS[2:] * 2}),
}


def settings(kind: str, **changes: Any) -> dict[str, Any]:
    """config.json; None leaves a key out."""
    config = SIZES | CONFIGS[kind] | changes
    return {key: value for key, value in config.items() if value is not None}


def recurrent(config: Mapping[str, Any]) -> list[bool]:
    """Whether each layer is a delta net."""
    names, period = config.get("layer_types"), config.get("full_attention_interval", 4)
    if names is not None:
        return [name == "linear_attention" for name in names]
    return [(i + 1) % period != 0 for i in range(config["num_hidden_layers"])]


def tensors(kind: str, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights by their names in transformers, and one block for multi-token prediction."""
    h, vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, h),
        "model.norm.weight": (h,),
        "mtp.fc.weight": (h, 2 * h),
        **{f"mtp.{name}.weight": (h,) for name in MTP_NORMS},
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, h)
    kinds = {f"model.layers.{i}": kind for i, kind in enumerate(recurrent(config))}
    for at, is_recurrent in (kinds | {"mtp.layers.0": False}).items():
        inside = _delta_net(kind, config) if is_recurrent else _attention(config)
        layer = inside | (_experts(kind, config) if "num_experts" in config else _mlp(config))
        layer |= {f"{p}_layernorm.weight": (h,) for p in ("input", "post_attention")}
        shapes |= {f"{at}.{name}": shape for name, shape in layer.items()}
    return {name: hf_folders.weights(name, *shape) for name, shape in shapes.items()}


def _attention(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    h, d, heads = config["hidden_size"], config["head_dim"], config["num_attention_heads"]
    kv = config["num_key_value_heads"] * d
    return {
        "self_attn.q_proj.weight": (2 * heads * d, h),
        "self_attn.k_proj.weight": (kv, h),
        "self_attn.v_proj.weight": (kv, h),
        "self_attn.o_proj.weight": (h, heads * d),
        "self_attn.q_norm.weight": (d,),
        "self_attn.k_norm.weight": (d,),
    }


def _delta_net(kind: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    h, s, kernel = (
        config[key] for key in ("hidden_size", "linear_key_head_dim", "linear_conv_kernel_dim")
    )
    key, value = config["linear_num_key_heads"], config["linear_num_value_heads"]
    channels = (2 * key + value) * s
    if kind == "qwen3next":
        matrices = {"in_proj_qkvz": channels + value * s, "in_proj_ba": 2 * value}
    else:
        matrices = {"in_proj_qkv": channels, "in_proj_z": value * s}
        matrices |= {"in_proj_a": value, "in_proj_b": value}
    return {
        **{f"linear_attn.{name}.weight": (rows, h) for name, rows in matrices.items()},
        "linear_attn.conv1d.weight": (channels, 1, kernel),
        "linear_attn.A_log": (value,),
        "linear_attn.dt_bias": (value,),
        "linear_attn.norm.weight": (s,),
        "linear_attn.out_proj.weight": (h, value * s),
    }


def _mlp(
    config: Mapping[str, Any], prefix: str = "mlp", wide: int = 0
) -> dict[str, tuple[int, ...]]:
    h, wide = config["hidden_size"], wide or config["intermediate_size"]
    shapes = {"gate_proj": (wide, h), "up_proj": (wide, h), "down_proj": (h, wide)}
    return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}


def _experts(kind: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Each by itself in qwen3next, in one stack with gates and what they multiply together in qwen35moe."""
    h, count, wide = config["hidden_size"], config["num_experts"], config["moe_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "mlp.gate.weight": (count, h),
        "mlp.shared_expert_gate.weight": (1, h),
    }
    shapes |= _mlp(config, "mlp.shared_expert", config["shared_expert_intermediate_size"])
    if kind == "qwen35moe":
        stacks = {"gate_up_proj": (count, 2 * wide, h), "down_proj": (count, h, wide)}
        return shapes | {f"mlp.experts.{name}": shape for name, shape in stacks.items()}
    for n in range(count):
        shapes |= _mlp(config, f"mlp.experts.{n}", wide)
    return shapes


def write(folder: Path, case: str, dtype: str = "BF16", **changes: Any) -> dict[str, np.ndarray]:
    """Write the folder of a case; returns the weights. changes: of config.json, None leaves a key out."""
    kind, own = CASES[case]
    config = settings(kind, **{**own, **changes})
    made = tensors(kind, config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    hf_folders.save(folder / "model.safetensors", made, dtype)
    hf_folders.write_tokenizer(folder, hf_folders.QWEN2)
    return made
