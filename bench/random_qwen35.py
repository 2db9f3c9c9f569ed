"""Write a hybrid model file to time, of random weights, types as in llama.cpp's Q4_K_M: its text means nothing.

    python bench/random_qwen35.py /tmp/random-qwen35.gguf         1.1 billion weights in Qwen3.5's shape
    python bench/random_qwen35.py /tmp/random-moe35.gguf --moe    a quarter of Qwen3.6-35B-A3B

The dense one has the width and the vocabulary of random_qwen3.py. The mixture has a quarter of the layers, 10 of 40,
and a quarter of the vocabulary, so that the head has the share of a token's work that it has in the whole.
llama.cpp loads them too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import gguf
import numpy as np
import random_files
from random_files import Tensor

from mlx_ferrum import cli

HEAD_DIM, ROTATED, SECTIONS, CONTEXT = 256, 64, (11, 11, 10, 0), 262144
STATE, CONV = 128, 4  # width of a head of a delta net, and its kernel
INTERVAL = 4  # each fourth layer attends
HALF_LIVES = (1.0, 500.0)  # tokens in which a head forgets half, at alpha = 0
STEPS = (-4.0, 0.0)  # of ssm_dt


class Sizes(NamedTuple):
    """Of a model. With experts, ffn is the width of each, the shared one too, and the head has weights of its own."""

    architecture: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    key_heads: int  # of delta nets
    value_heads: int
    vocab: int
    experts: int = 0
    used: int = 0


DENSE = Sizes(
    "qwen35",
    hidden=1536,
    ffn=4608,
    layers=24,
    heads=8,
    kv_heads=2,
    key_heads=16,
    value_heads=16,
    vocab=151936,
)
MOE = Sizes(
    "qwen35moe",
    hidden=2048,
    ffn=512,
    layers=10,
    heads=16,
    kv_heads=2,
    key_heads=16,
    value_heads=32,
    vocab=248320 // 4,
    experts=256,
    used=8,
)


def tensors(sizes: Sizes) -> Iterator[Tensor]:
    """All tensors in file order. The embeddings are also the head, and have its type, unless there are experts."""
    table = (sizes.vocab, sizes.hidden)
    yield Tensor("token_embd.weight", "Q4_K" if sizes.experts else "Q6_K", table)
    for i in range(sizes.layers):
        more_bits = random_files.has_more_bits(i, sizes.layers)
        for name, shape in layer_shapes(sizes, i).items():
            kind = "F32" if len(shape) == 1 or name in ("ffn_gate_inp", "ssm_conv1d") else "Q4_K"
            if name.startswith(("attn_v", "attn_qkv", "ffn_down")) and more_bits:
                kind = "Q6_K"
            suffix = {"ssm_a": "", "ssm_dt": ".bias"}.get(name, ".weight")
            yield Tensor(f"blk.{i}.{name}{suffix}", kind, shape)
    yield Tensor("output_norm.weight", "F32", (sizes.hidden,))
    if sizes.experts:
        yield Tensor("output.weight", "Q6_K", table)


def layer_shapes(sizes: Sizes, i: int) -> dict[str, tuple[int, ...]]:
    """Of layer i, by name."""
    attends = (i + 1) % INTERVAL == 0
    return {
        "attn_norm": (sizes.hidden,),
        **(attention_shapes(sizes) if attends else delta_shapes(sizes)),
        "post_attention_norm": (sizes.hidden,),
        **random_files.feed_forward_shapes(sizes),
        **(shared_expert_shapes(sizes) if sizes.experts else {}),
    }


def attention_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Of attention whose query heads come with gates."""
    hidden, queries, keys = sizes.hidden, sizes.heads * HEAD_DIM, sizes.kv_heads * HEAD_DIM
    return {
        "attn_q": (2 * queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "attn_q_norm": (HEAD_DIM,),
        "attn_k_norm": (HEAD_DIM,),
    }


def delta_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Of a gated delta net."""
    hidden, heads, values = sizes.hidden, sizes.value_heads, sizes.value_heads * STATE
    channels = 2 * sizes.key_heads * STATE + values
    return {
        "attn_qkv": (channels, hidden),
        "attn_gate": (values, hidden),
        "ssm_alpha": (heads, hidden),
        "ssm_beta": (heads, hidden),
        "ssm_conv1d": (channels, CONV),
        "ssm_dt": (heads,),
        "ssm_a": (heads,),
        "ssm_norm": (STATE,),
        "ssm_out": (hidden, values),
    }


def shared_expert_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Of the expert that each token has, and of its gate."""
    return {
        "ffn_gate_inp_shexp": (sizes.hidden,),
        "ffn_gate_shexp": (sizes.ffn, sizes.hidden),
        "ffn_up_shexp": (sizes.ffn, sizes.hidden),
        "ffn_down_shexp": (sizes.hidden, sizes.ffn),
    }


def add_metadata(writer: gguf.GGUFWriter, sizes: Sizes) -> None:
    """Sizes, and a vocabulary."""
    random_files.add_sizes(writer, sizes, head_dim=HEAD_DIM, context=CONTEXT, rope_theta=1e7)
    writer.add_rope_dimension_count(ROTATED)
    writer.add_rope_dimension_sections(SECTIONS)
    writer.add_full_attention_interval(INTERVAL)
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_group_count(sizes.key_heads)
    writer.add_ssm_time_step_rank(sizes.value_heads)
    writer.add_ssm_inner_size(sizes.value_heads * STATE)
    if sizes.experts:
        writer.add_expert_shared_feed_forward_length(sizes.ffn)
    random_files.add_vocabulary(writer, sizes.vocab, "qwen35")


def decays(i: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """(ssm_a, ssm_dt) of layer i, both (heads,) float32: half-lives are log-uniform in `HALF_LIVES`."""
    rng = np.random.default_rng(i)
    dt = rng.uniform(*STEPS, heads)
    half_lives = np.exp(rng.uniform(*np.log(HALF_LIVES), heads))
    a = -np.log(2) / half_lives / np.log1p(np.exp(dt))
    return a.astype(np.float32), dt.astype(np.float32)


def draw(rng: np.random.Generator, tensor: Tensor, sizes: Sizes) -> np.ndarray:
    """(..., rows, row bytes) uint8."""
    if found := re.fullmatch(r"blk\.(\d+)\.ssm_(a|dt\.bias)", tensor.name):
        a, dt = decays(int(found[1]), sizes.value_heads)
        return (a if found[2] == "a" else dt).view(np.uint8)
    return random_files.draw(rng, tensor, sizes)


KIND = random_files.Kind(tensors, add_metadata, draw)

if __name__ == "__main__":
    raise SystemExit(cli.guarded(lambda: random_files.main(__doc__, KIND, DENSE, MOE)))
