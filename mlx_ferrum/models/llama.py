"""Llama, and what is built like it (SmolLM, Mistral, Mixtral, TinyLlama, Yi …): GGUF calls all of them `llama`.

Query and key rows are permuted in converted files, so rotary pairs are interleaved.
"""

from __future__ import annotations

from typing import Any, ClassVar

from .. import ops
from ..batch import Place
from ..nn import FusedLinear, Module, RMSNorm
from ..profile import stage
from ..rope import Rope
from ..state.kinds import KV
from .base import BaseArgs, Decoder, LanguageModel, Metadata, Weights, heads
from .experts import expert_args
from .feed_forward import feed_forward


class ModelArgs(BaseArgs):
    """The common sizes; Mixtral has experts, each as wide as a dense model's MLP."""

    @classmethod
    def fields(cls, m: Metadata) -> dict[str, Any]:
        fields = super().fields(m)
        if m.get("expert_count", int, 0):
            size = fields["intermediate_size"]
            fields["experts"] = expert_args(m, size=size, normalise=True)
        return fields


class Attention(Module):
    """Over x, normed: x and add, a residual: (n, hidden) -> (n, hidden)"""

    interleaved: ClassVar[bool] = True
    head_norms: ClassVar[bool] = False
    gated: ClassVar[bool] = False  # whether each query is followed by a gate of what its head gives

    def __init__(self, args: BaseArgs, w: Weights, rope: Rope, window: int | None = None) -> None:
        super().__init__()
        self.args, self._rope = args, rope
        self.keeps = KV(args.num_kv_heads, args.head_dim, args.value_dim, window)
        d, hidden = args.head_dim, args.hidden_size
        rows = {
            "attn_q": args.num_heads * d * (1 + self.gated),
            "attn_k": args.num_kv_heads * d,
            "attn_v": args.num_kv_heads * args.value_dim,
        }
        self.qkv_proj = FusedLinear(*w.linears("attn_qkv", hidden, rows))
        self.o_proj = w.linear("attn_output", hidden, args.num_heads * args.value_dim)
        if self.head_norms:
            self.q_norm = w.norm("attn_q_norm", d, args.norm_eps)
            self.k_norm = w.norm("attn_k_norm", d, args.norm_eps)

    @stage("attention")
    def __call__(
        self, x: ops.Array, at: Place, norm: RMSNorm, add: ops.Array | None = None
    ) -> ops.Array:
        q, k, v = self.qkv_proj(x, norm)
        queries = heads(q, self.args.num_heads)
        q = ops.append(
            queries,
            heads(k, self.args.num_kv_heads),
            heads(v, self.args.num_kv_heads),
            at,
            self._rope.frequencies,
            interleaved=self.interleaved,
            magnitude=self._rope.magnitude,
            norms=self._head_norms(),
        )
        out = ops.attend(q, at, scale=self.args.scale)  # (n, h, dv)
        if self.gated:
            out = ops.gate(out, queries)
        return self.o_proj(out.reshape(len(x), -1), add)

    def _head_norms(self) -> ops.HeadNorms | None:
        if not self.head_norms:
            return None
        return self.q_norm.weight, self.k_norm.weight, self.args.norm_eps


class DecoderLayer(Module):
    """x: (n, hidden) -> (n, hidden)"""

    attention: ClassVar[type[Attention]] = Attention
    ffn_norm: ClassVar[str] = "ffn_norm"

    def __init__(self, args: BaseArgs, w: Weights, rope: Rope, i: int) -> None:
        super().__init__()
        self.input_layernorm = w.norm("attn_norm", args.hidden_size, args.norm_eps)
        self.self_attn = self.make_attention(args, w, rope, i)
        self.keeps = self.self_attn.keeps
        self.post_attention_layernorm = w.norm(self.ffn_norm, args.hidden_size, args.norm_eps)
        self.mlp = feed_forward(args, w, i)

    def make_attention(self, args: BaseArgs, w: Weights, rope: Rope, i: int) -> Module:
        """What mixes the rows of a sequence in layer i."""
        return self.attention(args, w, rope)

    def __call__(self, x: ops.Array, at: Any) -> ops.Array:
        """at: the place of what the layer keeps"""
        x = self.self_attn(x, at, self.input_layernorm, add=x)
        return self.mlp(x, self.post_attention_layernorm, add=x)


class LlamaModel(Decoder):
    """A batch of n rows -> (n, hidden), normed for the head."""

    def __init__(self, args: BaseArgs, w: Weights, layer: type[DecoderLayer]) -> None:
        super().__init__()
        rope = args.rope.rope(w.rope_factors(args.rope.dims // 2))
        self.embed_tokens = w.embedding("token_embd", args.vocab_size, args.hidden_size)
        self.layers = [layer(args, w.layer(i), rope, i) for i in range(args.num_layers)]
        self.norm = w.norm("output_norm", args.hidden_size, args.norm_eps)


class Model(LanguageModel):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    layer: ClassVar[type[DecoderLayer]] = DecoderLayer

    def __init__(self, args: BaseArgs, w: Weights) -> None:
        super().__init__(args, w)
        self.body = LlamaModel(args, w, self.layer)
