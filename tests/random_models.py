"""Small GGUF files with random weights, one per feature of an architecture.

`write` is deterministic: the same arguments give the same tensors on every platform, because weights are
drawn with integer and exact float arithmetic only. Weights of a matrix have a standard deviation of about
1 / sqrt(k), so that activations neither vanish nor explode.

The vocabulary means nothing, but it lets llama.cpp load the files too. Nothing here knows what a model computes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import random_blocks
import random_hybrid
import random_vocabulary
from random_hybrid import Delta


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a model; `hidden`, `ffn` and `heads * head_dim` are rows of blocks of up to 256."""

    hidden: int = 256
    ffn: int = 512
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 300
    context: int = 128
    experts: int = 0
    used: int = 0
    expert_ffn: int = 64
    shared_ffn: int = 0
    dense_layers: Sequence[int] = ()  # without experts
    delta: Delta | None = None  # of hybrid models


ROUTER = "ffn_gate_inp"
QKV_BIASES = ("attn_q", "attn_k", "attn_v")
GEMMA_WINDOW = {
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": 3,
    "rope.freq_base": 50000.0,
}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}

# Keyword arguments of `write`, by what the file is there to show.
CASES: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama"},
    "llama-tied-rope_freqs": {
        "arch": "llama",
        "tied": True,
        "vectors": {
            "rope_freqs.weight": np.clip(np.arange(64, dtype=np.float32) / 4 - 2, 1, 8),
        },
        "sizes": Sizes(head_dim=128),
    },
    "llama-linear-biases": {
        "arch": "llama",
        "biases": (*QKV_BIASES, "attn_output"),
        "metadata": LINEAR,
    },
    "llama-yarn-mha": {"arch": "llama", "metadata": YARN, "sizes": Sizes(kv_heads=4)},
    "qwen2": {"arch": "qwen2", "biases": QKV_BIASES, "metadata": {"rope.freq_base": 1e6}},
    "qwen2-tied-yarn": {
        "arch": "qwen2",
        "biases": QKV_BIASES,
        "tied": True,
        "metadata": {
            **YARN,
            "rope.scaling.attn_factor": 1.25,
            "rope.scaling.yarn_beta_fast": 8.0,
            "rope.scaling.yarn_beta_slow": 0.5,
        },
        "sizes": Sizes(kv_heads=1),
    },
    "qwen3": {"arch": "qwen3", "sizes": Sizes(head_dim=128)},
    "qwen3-tied-linear": {"arch": "qwen3", "tied": True, "metadata": LINEAR},
    "gemma3": {
        "arch": "gemma3",
        "tied": True,
        "metadata": GEMMA_WINDOW,
        "sizes": Sizes(layers=4, kv_heads=1, head_dim=128),
    },
    "gemma3-linear": {
        "arch": "gemma3",
        "tied": True,
        "metadata": {
            **GEMMA_WINDOW,
            **LINEAR,
            "attention.sliding_window_pattern": [True, False, True, False],
            "rope.freq_base_swa": 2000.0,
        },
        "sizes": Sizes(layers=4),
    },
    "gemma3-no-window": {"arch": "gemma3", "tied": True},
    "qwen3moe": {"arch": "qwen3moe", "sizes": Sizes(layers=2, experts=8, used=2, expert_ffn=256)},
    "qwen3moe-60-dense": {
        "arch": "qwen3moe",
        "tied": True,
        "types": ("Q5_K", "Q8_0", "IQ4_NL", "F16", "Q5_1"),
        "sizes": Sizes(layers=3, experts=60, used=4, dense_layers=(0,)),
    },
    "qwen3moe-128": {
        "arch": "qwen3moe",
        "types": ("Q4_K", "Q6_K", "Q5_0"),
        "sizes": Sizes(layers=2, experts=128, used=8, head_dim=128),
    },
    "qwen3moe-not-normalised": {
        "arch": "qwen3moe",
        "types": ("MXFP4", "Q3_K", "Q4_1", "BF16", "IQ4_XS"),
        "metadata": {"expert_weights_norm": False},
        "sizes": Sizes(layers=2, experts=9, used=3),
    },
    "qwen2moe": {
        "arch": "qwen2moe",
        "biases": QKV_BIASES,
        "sizes": Sizes(layers=2, kv_heads=4, experts=60, used=4, shared_ffn=256),
    },
    "mixtral": {
        "arch": "llama",
        "sizes": Sizes(ffn=256, layers=2, experts=8, used=2, expert_ffn=256),
    },
    "qwen3next": {
        "arch": "qwen3next",
        "types": ("Q4_K", "Q8_0"),
        "sizes": Sizes(layers=2, experts=8, used=2, expert_ffn=256, shared_ffn=256, delta=Delta()),
    },
    "qwen3next-old-dense": {
        "arch": "qwen3next",
        "types": ("Q5_0", "F16"),
        "metadata": {"attention.head_count_kv": [0, 2, 0]},
        "sizes": Sizes(
            layers=3,
            delta=Delta(3, 3, 32, recurrent=(True, False, True), is_old=True, rotary=64),
        ),
    },
    "qwen35": {
        "arch": "qwen35",
        "tied": True,
        "types": ("Q4_K", "Q6_K", "Q8_0"),
        "sizes": Sizes(layers=4, delta=Delta(1, 3, 128, kernel=3, interval=4)),
    },
    "qwen35moe-predictor": {
        "arch": "qwen35moe",
        "types": ("Q8_0", "IQ4_XS"),
        "sizes": Sizes(
            layers=3,
            experts=9,
            used=3,
            expert_ffn=256,
            shared_ffn=256,
            delta=Delta(4, 8, 32, recurrent=(True, True, False), predictors=1),
        ),
    },
}


def has_experts(case: Mapping[str, Any]) -> bool:
    """Whether layers of a case have experts."""
    return bool(case.get("sizes", Sizes()).experts)


def write_case(path: Path, name: str, seed: int) -> Path:
    """Write the file of `CASES[name]` with this seed to `path`."""
    return write(path, seed=seed, **CASES[name])


def write(
    path: Path,
    arch: str,
    seed: int,
    *,
    sizes: Sizes = Sizes(),
    types: Sequence[str] = random_blocks.TYPES,
    tied: bool = False,
    biases: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    is_ascii: bool = False,
    template: str | None = None,
    named: Mapping[int, str] = {},
    named_kind: gguf.TokenType = gguf.TokenType.UNUSED,
    keys: Mapping[str, int] = {},
) -> Path:
    """Write a random model of architecture `arch` to `path` and return `path`.

    types: quant types, dealt in turn to the matrices, in an order drawn from the seed.
    tied: no `output.weight`; the token embeddings serve as the head.
    biases: matrices that get a bias: those of layers (`attn_q` …), and `output`.
    metadata: further keys, without the architecture's prefix; they override the defaults.
    vectors: further float32 tensors by their whole name.
    is_ascii: each token is text of its own, so that llama.cpp gives log-probabilities of all.
    template: the chat template.
    named, named_kind: texts of unused tokens, and what these are instead; see random_vocabulary.add.
    keys: further integers of the metadata, by their whole name.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"random {arch} {seed}")
    for key, value in {**_metadata(arch, sizes), **(metadata or {})}.items():
        _add_value(writer, f"{arch}.{key}", value)
    for key, value in keys.items():
        writer.add_uint32(key, value)
    if is_ascii:
        random_vocabulary.add_ascii(writer, sizes.vocab)
    else:
        random_vocabulary.add(writer, sizes.vocab, named, named_kind)
    if template is not None:
        writer.add_chat_template(template)
    deal = itertools.cycle(types[i] for i in rng.permutation(len(types)))
    for name, shape in _shapes(arch, sizes, tied, biases).items():
        if len(shape) == 1:
            writer.add_tensor(name, rng.uniform(*_range(name), shape).astype(np.float32))
        else:
            is_plain = ROUTER in name or any(part in name for part in random_hybrid.F32)
            type = "F32" if is_plain else _fitting(deal, shape[-1])
            matrix = random_blocks.matrix(rng, type, math.prod(shape[:-1]), shape[-1])
            _add_matrix(writer, name, matrix, shape)
    for name, vector in (vectors or {}).items():
        writer.add_tensor(name, vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _range(name: str) -> tuple[float, float]:
    """What a vector's values are drawn from."""
    for end, found in random_hybrid.RANGES.items():
        if name.endswith(end):
            return found
    if name.endswith(".bias"):
        return -0.5, 0.5
    return (-0.1, 0.1) if ROUTER in name else (0.5, 2.0)


def _fitting(deal: Iterator[str], k: int) -> str:
    """The next type whose blocks fit rows of k."""
    return next(
        type for type in deal if k % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]][0] == 0
    )


def _add_matrix(
    writer: gguf.GGUFWriter, name: str, matrix: random_blocks.Matrix, shape: tuple[int, ...]
) -> None:
    """shape: (..., rows, k)"""
    qtype = gguf.GGMLQuantizationType[matrix.type]
    unquantized = {"F32": np.float32, "F16": np.float16}.get(matrix.type)
    data = matrix.data if unquantized is None else matrix.data.view(unquantized)
    writer.add_tensor(name, data.reshape(*shape[:-1], -1), raw_dtype=qtype)


def _shapes(
    arch: str, sizes: Sizes, tied: bool, biases: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, in file order; a matrix is (rows, k), a stack (experts, rows, k)."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (sizes.vocab, sizes.hidden)}
    predictors = sizes.delta.predictors if sizes.delta else 0
    for i in range(sizes.layers + predictors):
        for name, shape in _layer(arch, sizes, i).items():
            shapes[f"blk.{i}.{random_hybrid.full_name(name)}"] = shape
            if name in biases:
                shapes[f"blk.{i}.{name}.bias"] = shape[:1]
    shapes["output_norm.weight"] = (sizes.hidden,)
    if not tied:
        shapes["output.weight"] = (sizes.vocab, sizes.hidden)
    if "output" in biases:
        shapes["output.bias"] = (sizes.vocab,)
    return shapes


def _hybrid_layer(arch: str, sizes: Sizes, delta: Delta, i: int) -> dict[str, tuple[int, ...]]:
    hidden, is_predictor = sizes.hidden, i >= sizes.layers
    if not is_predictor and delta.is_recurrent(i):
        layer = random_hybrid.recurrent_layer(arch, hidden, delta)
    else:
        layer = random_hybrid.attention_layer(hidden, sizes.heads, sizes.kv_heads, sizes.head_dim)
    return {
        "attn_norm": (hidden,),
        **layer,
        "post_attention_norm": (hidden,),
        **(_experts(sizes) if sizes.experts else _mlp(sizes)),
        **(random_hybrid.predictor(hidden) if is_predictor else {}),
    }


def _layer(arch: str, sizes: Sizes, i: int) -> dict[str, tuple[int, ...]]:
    hidden, head_dim = sizes.hidden, sizes.head_dim
    if sizes.delta is not None:
        return _hybrid_layer(arch, sizes, sizes.delta, i)
    q_rows, kv_rows = sizes.heads * head_dim, sizes.kv_heads * head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (q_rows, hidden),
        "attn_k": (kv_rows, hidden),
        "attn_v": (kv_rows, hidden),
        "attn_output": (hidden, q_rows),
        "ffn_norm": (hidden,),
    }
    has_experts = sizes.experts and i not in sizes.dense_layers
    layer |= _experts(sizes) if has_experts else _mlp(sizes)
    if arch in ("qwen3", "qwen3moe", "gemma3"):
        layer |= {"attn_q_norm": (head_dim,), "attn_k_norm": (head_dim,)}
    if arch == "gemma3":
        layer |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
    return layer


def _mlp(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {
        "ffn_gate": (sizes.ffn, sizes.hidden),
        "ffn_up": (sizes.ffn, sizes.hidden),
        "ffn_down": (sizes.hidden, sizes.ffn),
    }


def _experts(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    hidden, n, shared = sizes.hidden, sizes.experts, sizes.shared_ffn
    shapes: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp": (n, hidden),
        "ffn_gate_exps": (n, sizes.expert_ffn, hidden),
        "ffn_up_exps": (n, sizes.expert_ffn, hidden),
        "ffn_down_exps": (n, hidden, sizes.expert_ffn),
    }
    if shared:
        shapes |= {
            "ffn_gate_inp_shexp": (hidden,),
            "ffn_gate_shexp": (shared, hidden),
            "ffn_up_shexp": (shared, hidden),
            "ffn_down_shexp": (hidden, shared),
        }
    return shapes


def _metadata(arch: str, sizes: Sizes) -> dict[str, Any]:
    metadata = {
        "context_length": sizes.context,
        "embedding_length": sizes.hidden,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.ffn,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-4,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "rope.freq_base": 10000.0,
    }
    if sizes.experts:
        metadata |= {"expert_count": sizes.experts, "expert_used_count": sizes.used}
    if arch in ("qwen2moe", "qwen3moe", "qwen3next", "qwen35moe") and sizes.experts:
        metadata["expert_feed_forward_length"] = sizes.expert_ffn
    if sizes.shared_ffn:
        metadata["expert_shared_feed_forward_length"] = sizes.shared_ffn
    if sizes.delta is not None:
        metadata |= random_hybrid.metadata(arch, sizes.delta, sizes.layers)
    if arch == "llama":
        metadata |= {"vocab_size": sizes.vocab, "rope.dimension_count": sizes.head_dim}
    return metadata


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
