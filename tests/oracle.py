"""Exact logits of a GGUF file: weights dequantized by gguf-py, run by transformers in float32 on the CPU.

The configuration is made here from the file's metadata rather than by transformers' own GGUF import, which
leaves out head sizes, rotary scaling, `rope_freqs`, window patterns and biases. Needs torch and transformers.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import oracle_hybrid
import torch
import transformers

GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
GEMMA_LAYER_NAMES = {
    **LAYER_NAMES,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
MODELS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "qwen2moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
    "qwen3moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    **oracle_hybrid.MODELS,
}
GEMMA3_27B_LAYERS = 62


def load(path: Path) -> transformers.PreTrainedModel:
    """Read a GGUF file of one of `MODELS` into a float32 transformers model."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    arch = reader.fields["general.architecture"].contents()
    metadata = {
        key.removeprefix(f"{arch}."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(f"{arch}.")
    }
    is_mixtral = arch == "llama" and "expert_count" in metadata
    config_class, model_class = MODELS["mixtral" if is_mixtral else arch]
    config = config_class(**_config(arch, metadata, tensors))
    config._attn_implementation = config._experts_implementation = "eager"
    model = model_class(config).eval()
    missing, unexpected = model.load_state_dict(_state(arch, config, tensors), strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    if "rope_freqs.weight" in tensors:
        model.model.rotary_emb.inv_freq /= torch.tensor(tensors["rope_freqs.weight"])
    return model


def logits(model: transformers.PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """Logits after each token: (length,) -> (length, vocab) float32."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def router_logits(model: transformers.PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """What each layer with experts makes of each token: (length,) -> (layers, length, experts) float32."""
    with torch.no_grad():
        found = model(torch.tensor([tokens]), output_router_logits=True).router_logits
    return torch.stack(found).numpy()


def greedy(
    model: transformers.PreTrainedModel, tokens: list[int], count: int
) -> tuple[list[int], list[float]]:
    """Continue `tokens` by `count` most likely tokens; also how far each led the second, in logits."""
    found, leads, cache, step = [], [], None, tokens
    for _ in range(count):
        with torch.no_grad():
            out = model(torch.tensor([step]), past_key_values=cache, use_cache=True)
        top = out.logits[0, -1].topk(2)
        found.append(int(top.indices[0]))
        leads.append(float(top.values[0] - top.values[1]))
        cache, step = out.past_key_values, found[-1:]
    return found, leads


def _config(arch: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Arguments of the configuration class."""
    heads, hidden = metadata["attention.head_count"], metadata["embedding_length"]
    config = {
        "vocab_size": len(tensors["token_embd.weight"]),
        "hidden_size": hidden,
        "intermediate_size": metadata["feed_forward_length"],
        "num_hidden_layers": metadata["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["attention.head_count_kv"],
        "head_dim": metadata.get("attention.key_length", hidden // heads),
        "rms_norm_eps": metadata["attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": metadata["context_length"],
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _rope(metadata),
        "pad_token_id": None,
    }
    if arch == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if arch == "gemma3":
        config |= _gemma3_config(metadata, config)
    if arch in oracle_hybrid.MODELS:
        config |= oracle_hybrid.config(metadata, config["head_dim"])
    if "expert_count" in metadata:
        config |= _expert_config(metadata, tensors)
    return config


def _rope(metadata: dict[str, Any]) -> dict[str, Any]:
    rope = {
        "rope_type": metadata.get("rope.scaling.type", "default"),
        "rope_theta": metadata.get("rope.freq_base", 10000.0),
    }
    if rope["rope_type"] != "default":
        rope["factor"] = metadata["rope.scaling.factor"]
    if rope["rope_type"] == "yarn":
        magnitude = metadata.get("rope.scaling.attn_factor", 1.0)
        rope |= {
            "original_max_position_embeddings": metadata["rope.scaling.original_context_length"],
            "attention_factor": magnitude * (1 + 0.1 * math.log(rope["factor"])),
            "beta_fast": metadata.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": metadata.get("rope.scaling.yarn_beta_slow", 1.0),
        }
    return rope


def _gemma3_config(metadata: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    layers, window = config["num_hidden_layers"], metadata.get("attention.sliding_window")
    pattern = metadata.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, int):
        pattern = [(i + 1) % pattern != 0 for i in range(layers)]
    local = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base_swa", 10000.0)}
    scale = config["head_dim"]
    if layers == GEMMA3_27B_LAYERS:
        scale = config["hidden_size"] // config["num_attention_heads"]
    kinds = ["sliding_attention" if window and slides else "full_attention" for slides in pattern]
    return {
        "layer_types": kinds,
        "sliding_window": window or 1,
        "query_pre_attn_scalar": scale,
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": local,
        },
    }


def _expert_config(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mixtral goes by other names, and leaves the rest alone."""
    count, layers = metadata["expert_count"], range(metadata["block_count"])
    config = {
        "num_experts": count,
        "num_local_experts": count,
        "num_experts_per_tok": metadata["expert_used_count"],
        "moe_intermediate_size": metadata.get("expert_feed_forward_length"),
        "shared_expert_intermediate_size": metadata.get("expert_shared_feed_forward_length"),
        "mlp_only_layers": [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" not in tensors],
        "norm_topk_prob": metadata.get(
            "expert_weights_norm", any("attn_q_norm" in name for name in tensors)
        ),
    }
    return {key: value for key, value in config.items() if value is not None}


def _state(arch: str, config: Any, tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The transformers state dict of a file's tensors."""
    state = {}
    if arch in oracle_hybrid.MODELS:
        tensors = oracle_hybrid.trunk(arch, config, tensors)
    for name, array in _gates_with_ups(tensors).items():
        stem, _, kind = name.rpartition(".")
        if stem == "rope_freqs":
            continue
        if arch == "llama" and re.search(r"attn_[qk]$", stem):
            array = _undo_interleaving(array, config.head_dim)
        if arch == "gemma3" and stem.endswith("norm"):
            array = array - 1  # the file holds 1 + weight
        if stem.endswith("ffn_gate_inp_shexp"):
            array = array.reshape(1, -1)
        if arch in oracle_hybrid.MODELS:
            stem = stem if kind in ("weight", "bias") else name
            array = oracle_hybrid.arranged(arch, stem.rpartition(".")[2], array, config)
        target = _target(arch, stem)
        is_bare = stem.endswith(("_exps", *oracle_hybrid.VECTORS))
        key = target if is_bare else f"{target}.{kind}"
        state[key] = torch.tensor(np.ascontiguousarray(array))
    return state


def _gates_with_ups(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With each expert's gate and up in one matrix, gate first."""
    joined = {}
    for name, array in tensors.items():
        if "ffn_gate_exps" in name:
            up = tensors[name.replace("gate", "up")]
            joined[name.replace("gate", "gate_up")] = np.concatenate([array, up], axis=1)
        elif "ffn_up_exps" not in name:
            joined[name] = array
    return joined


def _target(arch: str, stem: str) -> str:
    """The transformers name of a GGUF tensor, both without `.weight` or `.bias`."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer is None:
        return GLOBAL_NAMES[stem]
    names = {"gemma3": GEMMA_LAYER_NAMES}.get(arch, LAYER_NAMES)
    if arch in oracle_hybrid.MODELS:
        names = LAYER_NAMES | oracle_hybrid.LAYER_NAMES | oracle_hybrid.VECTORS
    return f"model.layers.{layer[1]}.{names[layer[2]]}"


def _undo_interleaving(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a head from pairs (0, 1), (2, 3) … to halves, as transformers rotates; (rows, …) -> same."""
    pairs = array.reshape(-1, head_dim // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
