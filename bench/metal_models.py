"""The weights of two models as their Q4_K_M files have them, and the launches of a token.

The types are those that llama-quantize gives them: Q4_K, but Q6_K for the output and, in every other layer or so,
for attn_v and ffn_down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_ferrum import blocks
from mlx_ferrum.backends import metal
from mlx_ferrum.tensor import QTensor

LAYER_LAUNCHES = 7  # of a layer for one token, as tests/test_metal_launches.py counts them
OTHER_LAUNCHES = 3  # of a token: the embedding, the last norm, the output


@dataclass(frozen=True)
class Model:
    """q, kv: rows of attn_q, of attn_k and attn_v; ffn: rows of ffn_gate and ffn_up"""

    name: str
    layers: int
    dim: int
    q: int
    kv: int
    ffn: int
    vocab: int

    def has_more_bits(self, layer: int) -> bool:
        """Whether the layer's attn_v and ffn_down are Q6_K: the first and last eighth, and a third between."""
        eighth = self.layers // 8
        last = 7 * self.layers // 8
        return layer < eighth or layer >= last or (layer - eighth) % 3 == 2

    @property
    def launches(self) -> int:
        """Of a token, those of MLX's own operations included."""
        return LAYER_LAUNCHES * self.layers + OTHER_LAUNCHES

    def cache_bytes(self, held: int) -> int:
        """Of keys and values in float16 that a token reads after `held` others."""
        return self.layers * 2 * self.kv * held * 2


MODELS = (
    Model("Qwen3-8B", 36, 4096, 4096, 1024, 12288, 151936),
    Model("Llama-3.1-8B", 32, 4096, 4096, 1024, 14336, 128256),
)


@dataclass(frozen=True)
class Launch:
    """Products of a token: what is called with x (n, k), and the weights that it reads.

    weights: (ggml type, rows, k) of each
    """

    name: str
    weights: tuple[tuple[str, int, int], ...]

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(rows * blocks.by_name(block).row_bytes(k) for block, rows, k in self.weights)

    @property
    def k(self) -> int:
        return self.weights[0][2]

    def run(self, x: mx.array) -> None:
        """Through the metal backend, in the runner that is in use, with the norms of a model. x: (n, k)"""
        tensors, norm = [empty(*weight) for weight in self.weights], (mx.ones(self.k), 1e-6)
        call: dict[str, Callable[[], object]] = {
            "matmuls": lambda: metal.matmuls(x, tensors, norm=norm),
            "gate_up": lambda: metal.gate_up(x, tensors[0], tensors[1], "silu", norm=norm),
            "norm_matmul": lambda: metal.norm_matmul(x, tensors[0], norm),
            "matmul": lambda: metal.matmul(x, tensors[0]),
        }
        call[self.name]()


def empty(block: str, rows: int, k: int) -> QTensor:
    """Weights of zeros: what a kernel does does not hang on their values."""
    kind = blocks.by_name(block)
    return QTensor(kind, (rows, k), np.zeros(rows * kind.row_bytes(k), np.uint8))


def launches(model: Model) -> Counter[Launch]:
    """How often a token needs each product."""
    out = Counter[Launch]()
    for layer in range(model.layers):
        out.update(_layer(model, "Q6_K" if model.has_more_bits(layer) else "Q4_K"))
    out[output(model)] += 1
    return out


def output(model: Model) -> Launch:
    """The logits, which a prompt needs of its last token alone."""
    return Launch("matmul", (("Q6_K", model.vocab, model.dim),))


def _layer(m: Model, more: str) -> Iterator[Launch]:
    qkv = (("Q4_K", m.q, m.dim), ("Q4_K", m.kv, m.dim), (more, m.kv, m.dim))
    yield Launch("matmuls", qkv)
    yield Launch("matmul", (("Q4_K", m.dim, m.q),))
    yield Launch("gate_up", (("Q4_K", m.ffn, m.dim),) * 2)
    yield Launch("matmul", ((more, m.dim, m.ffn),))
