"""The weights of some models as their Q4_K_M files have them, and the launches of a token.

The types are those that llama-quantize gives them: Q4_K, but Q6_K for the output and, in every other layer or so,
for attn_v, attn_qkv and ffn_down; F32 for the router of a mixture of experts, and for the gate of a shared expert.

Sizes of Qwen3.6 are those of the model cards of Qwen3.5-35B-A3B and Qwen3.6-27B.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from metal_recurrent import Delta, StateLaunch, states

from mlx_ferrum import blocks
from mlx_ferrum.backends import metal
from mlx_ferrum.tensor import QTensor

# Of a layer for one token, as tests/test_metal_launches.py counts them: up to the feed-forward, and from there on.
ATTENTION_LAUNCHES, DELTA_LAUNCHES, GATE_LAUNCHES = 5, 5, 1
DENSE_LAUNCHES, MIXTURE_LAUNCHES, SHARED_LAUNCHES = 2, 4, 4
INTERVAL = 4  # every so many layers of a hybrid model one has attention
OTHER_LAUNCHES = 3  # of a token: the embedding, the last norm, the output


@dataclass(frozen=True)
class Model:
    """q, kv: rows of attn_q without gates, of attn_k and attn_v; ffn: rows of ffn_gate and ffn_up

    experts: how many such there are, of which a token gets `used`; 0 for no mixture
    shared: rows of an expert that every token gets, 0 for none
    delta: of all layers but each fourth, whose attention has gates; None for a model without
    """

    name: str
    layers: int
    dim: int
    q: int
    kv: int
    ffn: int
    vocab: int
    experts: int = 0
    used: int = 0
    shared: int = 0
    delta: Delta | None = None

    def is_recurrent(self, layer: int) -> bool:
        return self.delta is not None and (layer + 1) % INTERVAL != 0

    def has_more_bits(self, layer: int) -> bool:
        """Whether the layer's attn_v and ffn_down are Q6_K: the first and last eighth, and a third between."""
        eighth = self.layers // 8
        last = 7 * self.layers // 8
        return layer < eighth or layer >= last or (layer - eighth) % 3 == 2

    @property
    def launches(self) -> int:
        """Of a token, those of MLX's own operations included."""
        layer = MIXTURE_LAUNCHES if self.experts else DENSE_LAUNCHES
        layer += SHARED_LAUNCHES if self.shared else 0
        attention = ATTENTION_LAUNCHES + (GATE_LAUNCHES if self.delta else 0)
        mixing = attention * self.attending + DELTA_LAUNCHES * (self.layers - self.attending)
        return layer * self.layers + mixing + OTHER_LAUNCHES

    @property
    def attending(self) -> int:
        """Layers with attention."""
        return sum(not self.is_recurrent(layer) for layer in range(self.layers))

    def cache_bytes(self, held: int) -> int:
        """Of keys and values in float16 that a token reads after `held` others."""
        return self.attending * 2 * self.kv * held * 2


MODELS = (
    Model("Qwen3-8B", 36, 4096, 4096, 1024, 12288, 151936),
    Model("Llama-3.1-8B", 32, 4096, 4096, 1024, 14336, 128256),
    Model("Qwen3-30B-A3B", 48, 2048, 4096, 512, 768, 151936, experts=128, used=8),
    Model(
        *("Qwen3.6-35B-A3B", 40, 2048, 4096, 512, 512, 248320),
        experts=256,
        used=8,
        shared=512,
        delta=Delta(key_heads=16, heads=32, size=128),
    ),
    Model(
        *("Qwen3.6-27B", 64, 5120, 6144, 1024, 17408, 248320),
        delta=Delta(key_heads=16, heads=48, size=128),
    ),
)


@dataclass(frozen=True)
class Launch:
    """Products of a token: what is called with x (n, k), and the weights that it reads.

    weights: (ggml type, rows, k) of each
    experts: that each weight has for a token to get `used` of; 0 for a weight that all tokens share
    """

    name: str
    weights: tuple[tuple[str, int, int], ...]
    experts: int = 0
    used: int = 1

    @property
    def nbytes(self) -> int:
        """Of the weights that a token reads."""
        each = sum(rows * blocks.by_name(block).row_bytes(k) for block, rows, k in self.weights)
        return self.used * each

    @property
    def k(self) -> int:
        return self.weights[0][2]

    def run(self, x: mx.array) -> None:
        """Through the metal backend, in the runner that is in use, with the norms of a model. x: (n, k)"""
        if self.experts:
            return self._run_experts(x)
        tensors, norm = [empty(*weight) for weight in self.weights], (mx.ones(self.k), 1e-6)
        call: dict[str, Callable[[], object]] = {
            "matmuls": lambda: metal.matmuls(x, tensors, norm=norm),
            "gate_up": lambda: metal.gate_up(x, tensors[0], tensors[1], "silu", norm=norm),
            "norm_matmul": lambda: metal.norm_matmul(x, tensors[0], norm),
            "matmul": lambda: metal.matmul(x, tensors[0]),
        }
        call[self.name]()

    def _run_experts(self, x: mx.array) -> None:
        """Tokens choose at random."""
        tokens = x.shape[0]
        count = min(self.experts, tokens * self.used)
        ids = random_ids(tokens, self.used, count)
        tensors = [empty(block, count, rows, k) for block, rows, k in self.weights]
        if self.name == "gather_gate_up":
            metal.gather_gate_up(x, tensors[0], tensors[1], ids, "silu")
        else:
            each = mx.broadcast_to(x[:, None], (tokens, self.used, self.k))
            metal.gather_down(each, tensors[0], ids, mx.ones((tokens, self.used)))


def empty(block: str, *shape: int) -> QTensor:
    """Weights of zeros: what a kernel does does not hang on their values."""
    kind = blocks.by_name(block)
    nbytes = math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
    return QTensor(kind, shape, np.zeros(nbytes, np.uint8))


def random_ids(tokens: int, used: int, experts: int) -> mx.array:
    """Different experts for each token, all as likely: (tokens, used) int32."""
    rng = np.random.default_rng(tokens)
    return mx.array(rng.random((tokens, experts)).argsort(axis=-1)[:, :used].astype(np.int32))


def launches(model: Model) -> Counter[Launch | StateLaunch]:
    """How often a token needs each product, and each launch over states."""
    out = Counter[Launch | StateLaunch]()
    for layer in range(model.layers):
        more = "Q6_K" if model.has_more_bits(layer) else "Q4_K"
        out.update(_delta(model, more) if model.is_recurrent(layer) else _attention(model, more))
        out.update(_feed_forward(model, more))
    out[output(model)] += 1
    return out


def output(model: Model) -> Launch:
    """The logits, which a prompt needs of its last token alone."""
    return Launch("matmul", (("Q6_K", model.vocab, model.dim),))


def _attention(m: Model, more: str) -> Iterator[Launch]:
    q = 2 * m.q if m.delta else m.q
    qkv = (("Q4_K", q, m.dim), ("Q4_K", m.kv, m.dim), (more, m.kv, m.dim))
    yield Launch("matmuls", qkv)
    yield Launch("matmul", (("Q4_K", m.dim, m.q),))


def _delta(m: Model, more: str) -> Iterator[Launch | StateLaunch]:
    d = m.delta
    assert d is not None
    rows = ((more, d.channels), ("Q4_K", d.values), ("Q4_K", d.heads), ("Q4_K", d.heads))
    yield Launch("matmuls", tuple((block, n, m.dim) for block, n in rows))
    yield from states(d)
    yield Launch("matmul", (("Q4_K", m.dim, d.values),))


def _feed_forward(m: Model, more: str) -> Iterator[Launch]:
    gates, down = (("Q4_K", m.ffn, m.dim),) * 2, ((more, m.dim, m.ffn),)
    if m.experts:
        yield Launch("norm_matmul", (("F32", m.experts, m.dim),))
        yield Launch("gather_gate_up", gates, m.experts, m.used)
        yield Launch("gather_down", down, m.experts, m.used)
        if m.shared:
            yield Launch("gate_up", (("Q4_K", m.shared, m.dim),) * 2)
            yield Launch("matmul", ((more, m.dim, m.shared),))
            yield Launch("matmul", (("F32", 1, m.dim),))
    else:
        yield Launch("gate_up", gates)
        yield Launch("matmul", down)
