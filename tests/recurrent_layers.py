"""Recurrent layers for tests: their operations over random rows, and whole decoder layers of random weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from test_ops import random_tensor

from mlx_ferrum import blocks, ops
from mlx_ferrum.batch import Batch, RecurrentPlace
from mlx_ferrum.models.experts import ExpertArgs
from mlx_ferrum.models.hybrid import DecoderLayer, DeltaArgs, HybridArgs
from mlx_ferrum.models.weights import Weights
from mlx_ferrum.rope import RopeArgs
from mlx_ferrum.state.kinds import Recurrent
from mlx_ferrum.state.model import ModelStates
from mlx_ferrum.tensor import QTensor

EPS = 1e-6


class RandomRows:
    """A layer without products, whose inputs are drawn. states: of the backend in use

    half_lives: of the first value head and of the last one, in tokens
    """

    def __init__(
        self,
        sizes: DeltaArgs,
        *,
        tiled: bool,
        half_lives: tuple[float, float] = (1, 500),
        seed: int = 0,
    ) -> None:
        self.sizes, self.rng = sizes, np.random.default_rng(seed)
        heads = sizes.value_heads
        kind = Recurrent(sizes.channels, sizes.kernel - 1, heads, sizes.size)
        self.states = ModelStates([kind], ops.allocate, block=4)
        self.texts: list[Any] = []
        self.weight = self.draw(sizes.channels, sizes.kernel)
        self.norm = self.draw(sizes.size)
        decay = -np.log(2) / np.geomspace(*half_lives, heads)
        self.delta = ops.Delta(
            mx.array(decay.astype(np.float32)), self.draw(heads), sizes.key_heads, EPS, tiled
        )

    def draw(self, *shape: int) -> mx.array:
        return mx.array(self.rng.normal(size=shape).astype(np.float32))

    def begin(self, count: int) -> None:
        """So many new sequences."""
        self.texts += [self.states.begin() for _ in range(count)]

    def fork(self, i: int) -> None:
        """A new sequence with the state of sequence i."""
        self.texts.append(self.states.fork(self.texts[i]))

    def batch(self, counts: dict[int, int]) -> Batch:
        """The next rows of some sequences, of tokens that differ from all others."""
        n = sum(counts.values())
        rows = [(self.texts[i], count) for i, count in counts.items()]
        return self.states.batch(rows, self.rng.integers(0, 1 << 40, n))

    def __call__(self, counts: dict[int, int]) -> mx.array:
        """A pass, by sequence how many rows it gets: (n, h s)"""
        batch, n = self.batch(counts), sum(counts.values())
        out = self.compute(batch.layer(0), self.draw(n, self.sizes.channels))
        batch.advance()
        return out

    def compute(self, at: RecurrentPlace, x: mx.array) -> mx.array:
        """x: (n, channels) -> (n, h s)"""
        n, heads = x.shape[0], self.sizes.value_heads
        qkv = ops.short_conv(x, self.weight, at)
        o = ops.gated_delta(qkv, 3 * self.draw(n, heads), 3 * self.draw(n, heads), at, self.delta)
        return ops.gated_norm(o, self.norm, EPS, self.draw(n, self.sizes.values))


HIDDEN, FFN = 256, 512
SIZES = DeltaArgs(kernel=4, size=32, key_heads=2, value_heads=8)
EXPERTS = ExpertArgs(
    count=4,
    size=256,
    shared_size=0,
    dense_layers=0,
    by_scores=True,
    routing=ops.Routing(2),
)


def decoder_layer(experts: ExpertArgs | None = None) -> DecoderLayer:
    """A recurrent layer of random weights, dense or with experts; products are Q4_K."""
    args = HybridArgs(
        *("qwen35", 300, 1, HIDDEN, FFN, 4, 2, 64, 64, EPS, 128),
        RopeArgs(dims=16, base=1e6),
        experts,
        delta=SIZES,
        recurrent=(True,),
    )
    return DecoderLayer(args, Weights(_tensors(experts)).layer(0), None, 0)  # type: ignore[arg-type]


def _tensors(experts: ExpertArgs | None) -> dict[str, QTensor]:
    heads, size = SIZES.value_heads, SIZES.size
    vectors = {
        "attn_norm.weight": (HIDDEN,),
        "post_attention_norm.weight": (HIDDEN,),
        "ssm_conv1d.weight": (SIZES.channels, SIZES.kernel),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_norm.weight": (size,),
    }
    matrices: dict[str, tuple[int, ...]] = {
        "attn_qkv": (SIZES.channels, HIDDEN),
        "attn_gate": (SIZES.values, HIDDEN),
        "ssm_alpha": (heads, HIDDEN),
        "ssm_beta": (heads, HIDDEN),
        "ssm_out": (HIDDEN, SIZES.values),
    }
    if experts is None:
        matrices |= {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
    else:
        vectors["ffn_gate_inp.weight"] = (experts.count, HIDDEN)
        stack = (experts.count, experts.size, HIDDEN)
        matrices |= {"ffn_gate_exps": stack, "ffn_up_exps": stack}
        matrices["ffn_down_exps"] = (experts.count, HIDDEN, experts.size)
    shapes: list[Any] = [(name, blocks.F32, shape) for name, shape in vectors.items()]
    shapes += [(f"{name}.weight", blocks.Q4_K, shape) for name, shape in matrices.items()]
    return {
        f"blk.0.{name}": random_tensor(block, *shape, seed=seed)
        for seed, (name, block, shape) in enumerate(shapes)
    }
