"""BERT without a pooler: an encoder for embeddings."""

from __future__ import annotations

import gguf

from ..architecture import Architecture, linear

_HEADS = ("pooler.", "cls.", "embeddings.position_ids")


class Converter(Architecture):
    """Names only; weights stay as they are."""

    name = "bert"
    activation = "gelu"

    def add(self, w: gguf.GGUFWriter) -> None:
        w.add_block_count(self.layers)
        w.add_context_length(self.size("max_position_embeddings"))
        w.add_embedding_length(self.hidden)
        w.add_feed_forward_length(self.size("intermediate_size"))
        w.add_head_count(self.heads)
        w.add_layer_norm_eps(self.number("layer_norm_eps"))
        w.add_causal_attention(False)
        w.add_pooling_type(gguf.PoolingType.MEAN)
        w.add_token_type_count(self.size("type_vocab_size"))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        h, wide = self.hidden, self.size("intermediate_size")
        norms = ("attn_output_norm", "layer_output_norm")
        return {
            "token_embd.weight": (self.vocabulary, h),
            "token_embd_norm.weight": (h,),
            "token_embd_norm.bias": (h,),
            "position_embd.weight": (self.size("max_position_embeddings"), h),
            "token_types.weight": (self.size("type_vocab_size"), h),
            **{
                k: s
                for n in ("q", "k", "v", "output")
                for k, s in linear(f"attn_{n}", h, h).items()
            },
            **{f"{n}.{end}": (h,) for n in norms for end in ("weight", "bias")},
            **linear("ffn_up", wide, h),
            **linear("ffn_down", h, wide),
        }

    def renamed(self, name: str) -> str | None:
        name = name.removeprefix("bert.")
        return None if name.startswith(_HEADS) else name
