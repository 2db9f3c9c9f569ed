"""BERT: an encoder. Layer norms after the residuals, learned positions, attention in both directions.

Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from .. import ops
from ..nn import FusedLinear
from .base import Weights, heads, vocab_size
from .encoder import Encoder, Pooling
from .metadata import MAX_LAYERS, Metadata


@dataclass(frozen=True)
class ModelArgs:
    """Sizes; token_types: rows of the segment table; texts use the first row."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    token_types: int
    norm_eps: float
    context_length: int
    pooling: Pooling

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
        types = values.get("tokenizer.ggml.token_type_count")
        if type(types) is not int or types < 1:
            raise ValueError(
                f"tokenizer.ggml.token_type_count: {types!r} found, expected a positive number"
            )
        context = m.size("context_length")
        args = cls(
            vocab_size=vocab_size(m),
            num_layers=m.size("block_count", most=MAX_LAYERS),
            hidden_size=m.size("embedding_length"),
            intermediate_size=m.size("feed_forward_length"),
            num_heads=m.size("attention.head_count"),
            token_types=types,
            norm_eps=m.positive("attention.layer_norm_epsilon", zero=0.0),
            context_length=context,
            pooling=Pooling.from_metadata(m, context),
        )
        m.warn_of_foreign()
        return args


class LayerNorm(nn.Module):
    """(x - mean) / deviation * weight + bias over the last axis: x: (..., d) -> (..., d)."""

    def __init__(self, name: str, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.weight = w.vector(f"{name}.weight", args.hidden_size)
        self.bias = w.vector(f"{name}.bias", args.hidden_size)
        self.eps = args.norm_eps

    def __call__(self, x: ops.Array) -> ops.Array:
        return mx.fast.layer_norm(ops.to_mlx(x), self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """x: (b, l, hidden), lengths: (b,) -> (b, l, hidden), x added."""

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        h, self.num_heads = args.hidden_size, args.num_heads
        self.scale = (h // args.num_heads) ** -0.5
        self.qkv_proj = FusedLinear(
            *w.linears("attn_qkv", h, {"attn_q": h, "attn_k": h, "attn_v": h})
        )
        self.o_proj = w.linear("attn_output", h, h)

    def __call__(self, x: ops.Array, lengths: list[int]) -> ops.Array:
        q, k, v = (heads(part, self.num_heads).swapaxes(1, 2) for part in self.qkv_proj(x))
        out = ops.attend_both_ways(q, k, v, lengths, scale=self.scale)
        return self.o_proj(out.swapaxes(1, 2).reshape(x.shape), add=x)


class MLP(nn.Module):
    """down(gelu(up(x))) + x: (b, l, hidden) -> (b, l, hidden).

    GELU is the exact one, with which BERT was trained; llama.cpp computes the tanh form.
    """

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.up_proj = w.linear("ffn_up", args.intermediate_size, args.hidden_size)
        self.down_proj = w.linear("ffn_down", args.hidden_size, args.intermediate_size)

    def __call__(self, x: ops.Array) -> ops.Array:
        return self.down_proj(ops.gelu(self.up_proj(x)), add=x)


class EncoderLayer(nn.Module):
    """x: (b, l, hidden), lengths: (b,) -> (b, l, hidden)"""

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(args, w), MLP(args, w)
        self.attention_norm = LayerNorm("attn_output_norm", args, w)
        self.output_norm = LayerNorm("layer_output_norm", args, w)

    def __call__(self, x: ops.Array, lengths: list[int]) -> ops.Array:
        x = self.attention_norm(self.attention(x, lengths))
        return self.output_norm(self.mlp(x))


class Model(Encoder):
    """tokens (b, l) and the lengths (b,) of its rows -> (b, hidden) float32"""

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        self.args, self.pooling = args, args.pooling
        self.context_length, self.size = args.context_length, args.hidden_size
        self.embed_tokens = w.embedding("token_embd", args.vocab_size, self.size)
        self.positions = w.embedding("position_embd", args.context_length, self.size)
        if "token_types.weight" in w:
            self.token_types = w.embedding("token_types", args.token_types, self.size)
        self.norm = LayerNorm("token_embd_norm", args, w)
        self.layers = [EncoderLayer(args, w.layer(i)) for i in range(args.num_layers)]

    def __call__(self, tokens: mx.array, lengths: list[int]) -> mx.array:
        """lengths: the tokens of each row, from 1 to l; those behind them are padding and change nothing.

        Raises ValueError for rows longer than the context, and if the file changed since it was loaded.
        """
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(f"{length} tokens in a row, expected {self.context_length} at most")
        if self.check_file is not None:
            self.check_file()
        x: ops.Array = ops.to_mlx(self.embed_tokens(tokens))  # (b, l, hidden)
        x = x + ops.to_mlx(self.positions(mx.arange(length)))
        if "token_types" in self:
            x = x + ops.to_mlx(self.token_types(mx.array([0])))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, lengths)
        return self.pooling(ops.to_mlx(x), lengths)
