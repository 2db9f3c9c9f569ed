"""BERT: an encoder for embeddings. Layer norms after the residuals, learned positions, attention in both directions.

Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805. It keeps no state between calls and generates no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from .. import ops
from ..sample.recommended import Recommended
from .base import heads, vocab_size
from .metadata import MAX_LAYERS, Metadata
from .weights import Weights

POOLING = {1: "mean", 2: "cls", 3: "last"}  # bert.pooling_type


@dataclass(frozen=True)
class ModelArgs:
    """Sizes; pooling: how the vectors of a text's tokens become one."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    token_types: int
    norm_eps: float
    context_length: int
    pooling: str

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"bert.embedding_length: {self.hidden_size} is not a multiple of {self.num_heads} heads"
            )

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any], architecture: str) -> ModelArgs:
        """Read and check the sizes. Raises ValueError naming the key, NotImplementedError for what is not supported."""
        m = Metadata(values, architecture)
        if m.get("attention.causal", bool, False):
            raise NotImplementedError(
                f"{architecture}.attention.causal: causal attention is not supported, expected false"
            )
        pooling = m.get("pooling_type", int, 1)
        if pooling not in POOLING:
            raise NotImplementedError(
                f"{architecture}.pooling_type: {pooling} is not supported, expected 1 (mean), 2 (cls) or 3 (last)"
            )
        types = values.get("tokenizer.ggml.token_type_count", 2)
        if type(types) is not int or types < 1:
            raise ValueError(
                f"tokenizer.ggml.token_type_count: expected a positive number, found {types!r}"
            )
        return cls(
            vocab_size=vocab_size(m),
            num_layers=m.size("block_count", most=MAX_LAYERS),
            hidden_size=m.size("embedding_length"),
            intermediate_size=m.size("feed_forward_length"),
            num_heads=m.size("attention.head_count"),
            token_types=types,
            norm_eps=m.positive("attention.layer_norm_epsilon", zero=0.0),
            context_length=m.size("context_length"),
            pooling=POOLING[pooling],
        )


class LayerNorm(nn.Module):
    """(x - mean) / deviation * weight + bias over the last axis: x: (..., d) -> (..., d)."""

    def __init__(self, name: str, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.weight = w.vector(f"{name}.weight", args.hidden_size)
        self.bias = w.vector(f"{name}.bias", args.hidden_size)
        self.eps = args.norm_eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(ops.to_mlx(x), self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """x: (b, l, hidden), mask: (b, 1, 1, l), True at tokens -> (b, l, hidden), with x added."""

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        h, self.num_heads = args.hidden_size, args.num_heads
        self.scale = (h // args.num_heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            w.linear(f"attn_{name}", h, h) for name in ("q", "k", "v", "output")
        )

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        q, k, v = (
            heads(ops.to_mlx(proj(x)), self.num_heads).swapaxes(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        return self.o_proj(out.swapaxes(1, 2).reshape(x.shape), add=x)


class MLP(nn.Module):
    """down(gelu(up(x))) + x: (b, l, hidden) -> (b, l, hidden); GELU is the exact one."""

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.up_proj = w.linear("ffn_up", args.intermediate_size, args.hidden_size)
        self.down_proj = w.linear("ffn_down", args.hidden_size, args.intermediate_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu(ops.to_mlx(self.up_proj(x))), add=x)


class DecoderLayer(nn.Module):
    """x: (b, l, hidden) -> (b, l, hidden)"""

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(args, w), MLP(args, w)
        self.attention_norm = LayerNorm("attn_output_norm", args, w)
        self.output_norm = LayerNorm("layer_output_norm", args, w)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        x = self.attention_norm(self.attention(x, mask))
        return self.output_norm(self.mlp(x))


class Model(nn.Module):
    """tokens: (b, l), lengths: (b,) -> embeddings (b, hidden) float32"""

    fingerprint: str = ""
    nbytes: int = 0
    recommended: Recommended = Recommended()
    check_file: Callable[..., None] | None = None

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.args, h = args, args.hidden_size
        self.embed_tokens = w.embedding("token_embd", args.vocab_size, h)
        self.positions = w.embedding("position_embd", args.context_length, h)
        self.types = w.embedding("token_types", args.token_types, h)
        self.norm = LayerNorm("token_embd_norm", args, w)
        self.layers = [DecoderLayer(args, w.layer(i)) for i in range(args.num_layers)]

    def __call__(self, tokens: mx.array, lengths: np.ndarray) -> mx.array:
        """lengths: the tokens of each row, from 1 to l; what is behind them is padding and changes nothing.

        Raises ValueError for rows that are longer than the context, and if the file changed since it was loaded.
        """
        if tokens.shape[1] > self.args.context_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens in a text, expected {self.args.context_length} at most"
            )
        if self.check_file is not None:
            self.check_file()
        real = mx.arange(tokens.shape[1])[None] < mx.array(lengths)[:, None]  # (b, l)
        x = ops.to_mlx(self.embed_tokens(tokens))
        x = x + ops.to_mlx(self.positions(mx.arange(tokens.shape[1])))
        x = self.norm(x + ops.to_mlx(self.types(mx.array([0]))))
        for layer in self.layers:
            x = layer(x, real[:, None, None])
        return self._pooled(x, real, lengths)

    def _pooled(self, x: mx.array, real: mx.array, lengths: np.ndarray) -> mx.array:
        """x: (b, l, hidden), real: (b, l) -> (b, hidden)"""
        if self.args.pooling == "cls":
            return x[:, 0]
        if self.args.pooling == "last":
            return x[mx.arange(x.shape[0]), mx.array(lengths) - 1]
        return (x * real[..., None]).sum(1) / mx.array(lengths)[:, None]

    def make_cache(self) -> list[Any]:
        """Raises NotImplementedError: the model has no state and generates no text."""
        raise NotImplementedError("bert makes embeddings and no text: use mlx_ferrum.embed")
