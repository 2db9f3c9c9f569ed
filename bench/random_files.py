"""What the files of random weights share: their tensors, a vocabulary, and how they are written.

Types are those that llama.cpp's Q4_K_M gives; llama.cpp loads the files too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import gguf
import numpy as np
import random_weights
from tqdm import tqdm

from mlx_ferrum import blocks, cli


class Sizes(Protocol):
    """What a model of any architecture has. With experts, ffn is the width of each; the head is a tensor of its own."""

    @property
    def architecture(self) -> str: ...
    @property
    def hidden(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def used(self) -> int: ...


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


S = TypeVar("S", bound=Sizes)


def has_more_bits(i: int, layers: int) -> bool:
    """Whether Q4_K_M gives layer i's attn_v and ffn_down 6 bits: the outer layers, and each third between."""
    eighth = layers // 8
    return i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2


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


def draw(rng: np.random.Generator, tensor: Tensor, sizes: Sizes) -> np.ndarray:
    """(..., rows, row bytes) uint8, of standard deviation 1 / sqrt(k); norms are near 1.

    Embeddings that are no head have one of 1: with smaller ones tokens grow alike, and routers choose few experts.
    """
    if len(tensor.shape) == 1:
        return rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32).view(np.uint8)
    *outer, k = tensor.shape
    block = blocks.by_name(tensor.type)
    std = 1.0 if sizes.experts and tensor.name == "token_embd.weight" else k**-0.5
    drawn = random_weights.rows(rng, block, (int(np.prod(outer)), k), std)
    return drawn.reshape(tensor.stored)


def add_sizes(
    writer: gguf.GGUFWriter, sizes: Sizes, *, head_dim: int, context: int, rope_theta: float
) -> None:
    """The keys that each architecture has."""
    writer.add_name(f"random {sizes.architecture}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_context_length(context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.ffn)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(rope_theta)
    if sizes.experts:
        writer.add_expert_count(sizes.experts)
        writer.add_expert_used_count(sizes.used)
        writer.add_expert_feed_forward_length(sizes.ffn)


def add_vocabulary(writer: gguf.GGUFWriter, size: int, pre: str) -> None:
    """Bytes, one merge, and many unused tokens. pre: how words are cut, `tokenizer.ggml.pre`."""
    tokens = [*byte_tokens(), "th"]
    unused = [f"<unused{i}>" for i in range(size - len(tokens) - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *unused, "<|endoftext|>"])
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * len(unused)
    writer.add_token_types([*kinds, gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(size - 1)
    writer.add_add_bos_token(False)


def byte_tokens() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printable, *range(256, 512 - len(printable))]]


def add_tensor_infos(writer: gguf.GGUFWriter, tensors: Sequence[Tensor]) -> None:
    """Announce the tensors, whose data is written later, if at all."""
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        is_float = kind == gguf.GGMLQuantizationType.F32
        shape, dtype = (tensor.shape, np.float32) if is_float else (tensor.stored, np.uint8)
        writer.add_tensor_info(tensor.name, shape, np.dtype(dtype), tensor.nbytes, kind)


@dataclass(frozen=True)
class Kind(Generic[S]):
    """Files of one architecture, of any sizes.

    tensors: all of them in file order
    draw: (..., rows, row bytes) uint8 of a tensor; called in their order, with one generator
    """

    tensors: Callable[[S], Iterable[Tensor]]
    add_metadata: Callable[[gguf.GGUFWriter, S], None]
    draw: Callable[[np.random.Generator, Tensor, S], np.ndarray] = draw

    def write(self, path: Path, sizes: S, seed: int) -> None:
        """Write a file, one tensor in memory at a time; it appears under its name when it is complete."""
        rng = np.random.default_rng(seed)
        part = path.with_name(path.name + ".part")
        tensors = list(self.tensors(sizes))
        writer = gguf.GGUFWriter(part, sizes.architecture)
        self.add_metadata(writer, sizes)
        add_tensor_infos(writer, tensors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(tensor.nbytes for tensor in tensors)
        with tqdm(total=total, desc=path.name, unit="B", unit_scale=True) as bar:
            for tensor in tensors:
                writer.write_tensor_data(self.draw(rng, tensor, sizes))
                bar.update(tensor.nbytes)
        writer.close()
        part.replace(path)


def main(description: str | None, kind: Kind[S], dense: S, moe: S) -> int:
    """Write the file that the command line asks for, and say what is in it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=cli.HelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--moe", action="store_true", help="a mixture of experts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes = moe if args.moe else dense
    kind.write(args.path, sizes, args.seed)
    weights = sum(int(np.prod(tensor.shape)) for tensor in kind.tensors(sizes))
    print(f"{args.path}: {weights / 1e9:.2f} G weights, {args.path.stat().st_size / 1e6:.0f} MB")
    return 0
