"""Small Hugging Face folders with made-up weights, one for each architecture that can be converted.

Weights are multiples of 1/64 within ±2, so they are the same in every float type and on every platform.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 272,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 262,
    "eos_token_id": 263,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_experts": 3}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 50000.0,
        "rope_scaling": LLAMA3,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 32,
        "sliding_window": None,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "rope_scaling": YARN,
    },
    "qwen2moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 64,
        **EXPERTS,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
    },
    "qwen3moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "norm_topk_prob": True,
        **EXPERTS,
    },
}
GEMMA3_TEXT = {
    **SIZES,
    "model_type": "gemma3_text",
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
MERGES = ["h e", "l l", "he ll", "Ġ w", "t h", "th e"]
SPECIAL = {"<|begin|>": True, "<|end|>": True, "<|endoftext|>": False, "<tool>": False}


def weights(name: str, *shape: int) -> np.ndarray:
    """float32 that depends on the name."""
    count = math.prod(shape)
    mixed = (np.arange(count, dtype=np.uint64) + zlib.crc32(name.encode())) * 2654435761
    return ((mixed >> 7) % 257).astype(np.float32).reshape(shape) / 64 - 2


def tensors(kind: str, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a model by their names in transformers."""
    h, wide, heads = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_attention_heads"],
    )
    d = config.get("head_dim", h // heads)
    q, kv = heads * d, config["num_key_value_heads"] * d
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], h),
        "model.norm.weight": (h,),
    }
    if not config.get("tie_word_embeddings", kind == "gemma3"):
        shapes["lm_head.weight"] = (config["vocab_size"], h)
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (h,),
            "post_attention_layernorm.weight": (h,),
            "self_attn.q_proj.weight": (q, h),
            "self_attn.k_proj.weight": (kv, h),
            "self_attn.v_proj.weight": (kv, h),
            "self_attn.o_proj.weight": (h, q),
            **_feed_forward(kind, config, h, wide),
        }
        if kind.startswith("qwen2"):
            layer |= {f"self_attn.{p}_proj.bias": (n,) for p, n in (("q", q), ("k", kv), ("v", kv))}
        if kind in ("qwen3", "qwen3moe", "gemma3"):
            layer |= {"self_attn.q_norm.weight": (d,), "self_attn.k_norm.weight": (d,)}
        if kind == "gemma3":
            layer |= {f"{p}_feedforward_layernorm.weight": (h,) for p in ("pre", "post")}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {name: weights(name, *shape) for name, shape in shapes.items()}


def _feed_forward(
    kind: str, config: Mapping[str, Any], h: int, wide: int
) -> dict[str, tuple[int, ...]]:
    if kind == "mixtral":
        names, inside, router = ("w1", "w3", "w2"), wide, "block_sparse_moe"
        count = config["num_local_experts"]
    elif kind.endswith("moe"):
        names, inside, router = ("gate_proj", "up_proj", "down_proj"), 32, "mlp"
        count = config["num_experts"]
    else:
        return _mlp("mlp", ("gate_proj", "up_proj", "down_proj"), h, wide)
    shapes: dict[str, tuple[int, ...]] = {f"{router}.gate.weight": (count, h)}
    for n in range(count):
        shapes |= _mlp(f"{router}.experts.{n}", names, h, inside)
    if kind == "qwen2moe":
        shapes |= _mlp("mlp.shared_expert", names, h, config["shared_expert_intermediate_size"])
        shapes["mlp.shared_expert_gate.weight"] = (1, h)
    return shapes


def _mlp(prefix: str, names: tuple[str, ...], h: int, wide: int) -> dict[str, tuple[int, ...]]:
    gate, up, down = (f"{prefix}.{name}.weight" for name in names)
    return {gate: (wide, h), up: (wide, h), down: (h, wide)}


def write(folder: Path, kind: str, dtype: str = "F16", **changes: Any) -> dict[str, np.ndarray]:
    """Write a folder; returns the weights. changes: of config.json, None leaves a key out."""
    if kind == "gemma3":
        config: dict[str, Any] = {"architectures": ["Gemma3ForCausalLM"], **GEMMA3_TEXT}
    else:
        config = {**SIZES, "hidden_act": "silu", **CONFIGS[kind]}
    config = {key: value for key, value in (config | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    made = tensors(kind, config)
    save(folder / "model.safetensors", made, dtype)
    write_tokenizer(
        folder, LLAMA3_WORDS if kind == "llama" else QWEN2, ignore_merges=kind == "llama"
    )
    return made


DTYPES = {"F32": np.float32, "F16": np.float16}


def save(file: Path, made: Mapping[str, np.ndarray], dtype: str = "F16") -> None:
    """Write tensors as F32, F16 or BF16; those of uint8 are F8_E4M3."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, x in made.items():
        kind, raw = encoded(x, dtype)
        header[name] = {
            "dtype": kind,
            "shape": list(x.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def encoded(x: np.ndarray, dtype: str) -> tuple[str, bytes]:
    """The type and the bytes."""
    if x.dtype == np.uint8:
        return "F8_E4M3", x.tobytes()
    if dtype == "BF16":
        return dtype, (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return dtype, x.astype(DTYPES[dtype]).tobytes()


def write_tokenizer(folder: Path, words: str, ignore_merges: bool = False) -> None:
    """tokenizer.json with the 256 bytes, a few merges and added tokens, and tokenizer_config.json."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(rest))]
    texts = letters + [merge.replace(" ", "") for merge in MERGES]
    added = [
        {"id": len(texts) + n, "content": text, "special": special, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for n, (text, special) in enumerate(SPECIAL.items())
    ]
    described = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [merge.split(" ") for merge in MERGES],
            "ignore_merges": ignore_merges,
        },
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "chat_template": "{{ messages[0]['content'] }}",
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


ALL = (*CONFIGS, "gemma3")


def digest(raw: bytes) -> str:
    """A hash of a tensor's bytes, for golden files."""
    return hashlib.sha256(raw).hexdigest()[:16]
