"""Write a model file to time, of random weights, types as in llama.cpp's Q4_K_M: its text means nothing.

    python bench/random_qwen3.py /tmp/random-qwen3.gguf          1.1 billion weights in Qwen3's shape
    python bench/random_qwen3.py /tmp/random-moe.gguf --moe      a quarter of the layers of Qwen3-30B-A3B

llama.cpp loads them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import gguf
import random_files
from random_files import Tensor

from mlx_ferrum import cli

HEAD_DIM, VOCAB, CONTEXT = 128, 151936, 40960


class Sizes(NamedTuple):
    """Of a model. With experts, ffn is the width of each of them, and the head has weights of its own."""

    architecture: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    used: int = 0


DENSE = Sizes("qwen3", hidden=1536, ffn=4608, layers=28, heads=16, kv_heads=8)
MOE = Sizes("qwen3moe", 2048, 768, layers=12, heads=32, kv_heads=4, experts=128, used=8)


def tensors(sizes: Sizes) -> Iterator[Tensor]:
    """All tensors in file order. The embeddings are also the head, and have its type, unless there are experts."""
    table = (VOCAB, sizes.hidden)
    yield Tensor("token_embd.weight", "Q4_K" if sizes.experts else "Q6_K", table)
    for i in range(sizes.layers):
        for name, shape in layer_shapes(sizes).items():
            kind = "F32" if len(shape) == 1 or name == "ffn_gate_inp" else "Q4_K"
            more_bits = random_files.has_more_bits(i, sizes.layers)
            if name.startswith(("attn_v", "ffn_down")) and more_bits:
                kind = "Q6_K"
            yield Tensor(f"blk.{i}.{name}.weight", kind, shape)
    yield Tensor("output_norm.weight", "F32", (sizes.hidden,))
    if sizes.experts:
        yield Tensor("output.weight", "Q6_K", table)


def layer_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Of one layer, by name."""
    hidden, queries, keys = sizes.hidden, sizes.heads * HEAD_DIM, sizes.kv_heads * HEAD_DIM
    return {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "attn_q_norm": (HEAD_DIM,),
        "attn_k_norm": (HEAD_DIM,),
        "ffn_norm": (hidden,),
        **random_files.feed_forward_shapes(sizes),
    }


def add_metadata(writer: gguf.GGUFWriter, sizes: Sizes) -> None:
    """Sizes, and a vocabulary."""
    random_files.add_sizes(writer, sizes, head_dim=HEAD_DIM, context=CONTEXT, rope_theta=1e6)
    random_files.add_vocabulary(writer, VOCAB, "qwen2")


KIND = random_files.Kind(tensors, add_metadata)

if __name__ == "__main__":
    raise SystemExit(cli.guarded(lambda: random_files.main(__doc__, KIND, DENSE, MOE)))
