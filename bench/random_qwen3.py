"""Write a model file to time: Qwen3's shape, 1.1 billion random weights, types as in llama.cpp's Q4_K_M.

    python bench/random_qwen3.py /tmp/random-qwen3.gguf

Its text means nothing. llama.cpp loads it too.
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

HIDDEN, FFN, LAYERS = 1536, 4608, 28
HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
VOCAB, CONTEXT = 151936, 40960


class Tensor(NamedTuple):
    """shape: (rows, k), or (k,) of an F32 vector."""

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


def tensors() -> Iterator[Tensor]:
    """All tensors in file order. The embeddings are also the head, so they have its type."""
    yield Tensor("token_embd.weight", "Q6_K", (VOCAB, HIDDEN))
    for i in range(LAYERS):
        for name, shape in layer_shapes().items():
            kind = "F32" if len(shape) == 1 else "Q4_K"
            if name in ("attn_v", "ffn_down") and has_more_bits(i):
                kind = "Q6_K"
            yield Tensor(f"blk.{i}.{name}.weight", kind, shape)
    yield Tensor("output_norm.weight", "F32", (HIDDEN,))


def has_more_bits(i: int) -> bool:
    """Whether Q4_K_M gives layer i's attn_v and ffn_down 6 bits: the outer layers, and each third between."""
    eighth = LAYERS // 8
    return i < eighth or i >= 7 * LAYERS // 8 or (i - eighth) % 3 == 2


def layer_shapes() -> dict[str, tuple[int, ...]]:
    """Of one layer, by name."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    return {
        "attn_norm": (HIDDEN,),
        "attn_q": (queries, HIDDEN),
        "attn_k": (keys, HIDDEN),
        "attn_v": (keys, HIDDEN),
        "attn_output": (HIDDEN, queries),
        "attn_q_norm": (HEAD_DIM,),
        "attn_k_norm": (HEAD_DIM,),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }


def draw(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """(rows, row bytes) uint8, of standard deviation 1 / sqrt(k); norms are near 1."""
    if len(tensor.shape) == 1:
        return rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32).view(np.uint8)
    rows, k = tensor.shape
    return random_weights.rows(rng, blocks.by_name(tensor.type), (rows, k), k**-0.5)


def add_metadata(writer: gguf.GGUFWriter) -> None:
    """Sizes, and a byte-level vocabulary of Qwen's size that is mostly unused tokens."""
    writer.add_name("random qwen3")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
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


def write(path: Path, seed: int) -> None:
    """Write the file, one tensor in memory at a time; it appears under its name when it is complete."""
    rng = np.random.default_rng(seed)
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "qwen3")
    add_metadata(writer)
    wanted = list(tensors())
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
            writer.write_tensor_data(draw(rng, tensor))
            bar.update(tensor.nbytes)
    writer.close()
    part.replace(path)


def main() -> int:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.path, args.seed)
    weights = sum(int(np.prod(tensor.shape)) for tensor in tensors())
    print(f"{args.path}: {weights / 1e9:.2f} G weights, {args.path.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
