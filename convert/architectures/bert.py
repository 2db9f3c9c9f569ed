"""BERT without its heads: an encoder for embeddings."""

from __future__ import annotations

from pathlib import Path

import gguf

from .. import sentences
from ..architecture import Architecture, linear

_HEADS = ("pooler.", "cls.", "embeddings.position_ids")
_OLD_NAMES = {
    ".gamma": ".weight",
    ".beta": ".bias",
}  # of layer norms, in checkpoints from TensorFlow
# Options of config.json, and the values that the model implements; GGUF files have no keys for others.
_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class Converter(Architecture):
    """Names only; weights stay as they are."""

    name = "bert"
    activation = "gelu"
    needs_biases = True
    defaults = {
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }

    def check(self) -> None:
        if self.config.get("hidden_act") == "gelu_python":  # the same function
            self.config["hidden_act"] = "gelu"
        super().check()
        for key, wanted in _FIXED.items():
            found = self.config.get(key, wanted)
            if found != wanted:
                raise NotImplementedError(
                    f"config.json: {key} {found!r} is not supported, expected {wanted!r}"
                )

    def add(self, w: gguf.GGUFWriter) -> None:
        w.add_block_count(self.layers)
        w.add_context_length(self.size("max_position_embeddings"))
        w.add_embedding_length(self.hidden)
        w.add_feed_forward_length(self.size("intermediate_size"))
        w.add_head_count(self.heads)
        w.add_layer_norm_eps(self.number("layer_norm_eps"))
        w.add_causal_attention(False)
        w.add_token_type_count(self.size("type_vocab_size"))

    def add_folder(self, w: gguf.GGUFWriter, folder: Path) -> None:
        sentences.add(w, folder, self.size("max_position_embeddings"))

    def outside(self) -> dict[str, tuple[int, ...]]:
        h = self.hidden
        return {
            "token_embd.weight": (self.vocabulary, h),
            "position_embd.weight": (self.size("max_position_embeddings"), h),
            "token_types.weight": (self.size("type_vocab_size"), h),
            "token_embd_norm.weight": (h,),
            "token_embd_norm.bias": (h,),
        }

    def layer(self, i: int) -> dict[str, tuple[int, ...]]:
        h, wide = self.hidden, self.size("intermediate_size")
        shapes: dict[str, tuple[int, ...]] = {}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= linear(name, h, h)
        return shapes | linear("ffn_up", wide, h) | linear("ffn_down", h, wide)

    def renamed(self, name: str) -> str | None:
        name = name.removeprefix("bert.")
        for old, new in _OLD_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return None if name.startswith(_HEADS) else name
