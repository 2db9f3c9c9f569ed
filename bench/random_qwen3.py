"""Write a model file to time, of random weights, types as in llama.cpp's Q4_K_M: its text means nothing.

    python bench/random_qwen3.py /tmp/random-qwen3.gguf          1.1 billion weights in Qwen3's shape
    python bench/random_qwen3.py /tmp/random-moe.gguf --moe      a quarter of the layers of Qwen3-30B-A3B

llama.cpp loads them too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import random_weights
from tqdm import tqdm

from mlx_ferrum import blocks, cli

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

    def has_more_bits(self, i: int) -> bool:
        """Whether Q4_K_M gives layer i's attn_v and ffn_down 6 bits: the outer layers, and each third between."""
        eighth = self.layers // 8
        return i < eighth or i >= 7 * self.layers // 8 or (i - eighth) % 3 == 2


DENSE = Sizes("qwen3", hidden=1536, ffn=4608, layers=28, heads=16, kv_heads=8)
MOE = Sizes("qwen3moe", 2048, 768, layers=12, heads=32, kv_heads=4, experts=128, used=8)


class Tensor(NamedTuple):
    """shape: (..., rows, k), or (k,)."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in bytes, as the writer takes it."""
        return (*self.shape[:-1], blocks.by_name(self.type).row_bytes(self.shape[-1]))

    @property
    def nbytes(self) -> int:
        """Of the tensor in the file."""
        return int(np.prod(self.stored))


def tensors(sizes: Sizes) -> Iterator[Tensor]:
    """All tensors in file order. The embeddings are also the head, and have its type, unless there are experts."""
    table = (VOCAB, sizes.hidden)
    yield Tensor("token_embd.weight", "Q4_K" if sizes.experts else "Q6_K", table)
    for i in range(sizes.layers):
        for name, shape in layer_shapes(sizes).items():
            kind = "F32" if len(shape) == 1 or name == "ffn_gate_inp" else "Q4_K"
            if name.startswith(("attn_v", "ffn_down")) and sizes.has_more_bits(i):
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
        **feed_forward_shapes(sizes),
    }


def feed_forward_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Of one layer's feed-forward part: matrices, or a router and stacks of matrices."""
    wide, narrow = (sizes.ffn, sizes.hidden), (sizes.hidden, sizes.ffn)
    if not sizes.experts:
        return {"ffn_gate": wide, "ffn_up": wide, "ffn_down": narrow}
    return {
        "ffn_gate_inp": (sizes.experts, sizes.hidden),
        "ffn_gate_exps": (sizes.experts, *wide),
        "ffn_up_exps": (sizes.experts, *wide),
        "ffn_down_exps": (sizes.experts, *narrow),
    }


def draw(rng: np.random.Generator, tensor: Tensor, has_head: bool) -> np.ndarray:
    """(..., rows, row bytes) uint8, of standard deviation 1 / sqrt(k); norms are near 1.

    Embeddings that are no head have 1: with smaller ones tokens grow alike, and routers choose few experts.
    """
    if len(tensor.shape) == 1:
        return rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32).view(np.uint8)
    *outer, k = tensor.shape
    block = blocks.by_name(tensor.type)
    std = 1 if tensor.name == "token_embd.weight" and has_head else k**-0.5
    drawn = random_weights.rows(rng, block, (int(np.prod(outer)), k), std)
    return drawn.reshape(tensor.stored)


def add_metadata(writer: gguf.GGUFWriter, sizes: Sizes) -> None:
    """Sizes, and a vocabulary."""
    writer.add_name(f"random {sizes.architecture}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.ffn)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if sizes.experts:
        writer.add_expert_count(sizes.experts)
        writer.add_expert_used_count(sizes.used)
        writer.add_expert_feed_forward_length(sizes.ffn)
    add_vocabulary(writer)


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Bytes, one merge, and many unused tokens."""
    tokens = [*byte_tokens(), "th"]
    unused = [f"<unused{i}>" for i in range(VOCAB - len(tokens) - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *unused, "<|endoftext|>"])
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * len(unused)
    writer.add_token_types([*kinds, gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_add_bos_token(False)


def byte_tokens() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printable, *range(256, 512 - len(printable))]]


def write(path: Path, sizes: Sizes, seed: int) -> None:
    """Write the file, one tensor in memory at a time; it appears under its name when it is complete."""
    rng = np.random.default_rng(seed)
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, sizes.architecture)
    add_metadata(writer, sizes)
    wanted = list(tensors(sizes))
    for tensor in wanted:
        kind = gguf.GGMLQuantizationType[tensor.type]
        is_float = kind == gguf.GGMLQuantizationType.F32
        shape, dtype = (tensor.shape, np.float32) if is_float else (tensor.stored, np.uint8)
        writer.add_tensor_info(tensor.name, shape, np.dtype(dtype), tensor.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(tensor.nbytes for tensor in wanted)
    with tqdm(total=total, desc=path.name, unit="B", unit_scale=True) as bar:
        for tensor in wanted:
            writer.write_tensor_data(draw(rng, tensor, has_head=sizes.experts > 0))
            bar.update(tensor.nbytes)
    writer.close()
    part.replace(path)


def main() -> int:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--moe", action="store_true", help="a mixture of experts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes = MOE if args.moe else DENSE
    write(args.path, sizes, args.seed)
    weights = sum(int(np.prod(tensor.shape)) for tensor in tensors(sizes))
    print(f"{args.path}: {weights / 1e9:.2f} G weights, {args.path.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
