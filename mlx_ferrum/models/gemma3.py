"""Gemma 3, text: four norms a layer, scaled embeddings, and sliding-window layers between full ones.

Sliding layers have a rotary base of their own. Converted files hold norm weights as 1 + w, so the
norms are plain RMS norms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import ops
from ..batch import Place
from ..nn import Module
from ..rope import Rope, RopeArgs
from . import llama
from .base import MLP, BaseArgs, Decoder, LanguageModel, Metadata, Weights

FULL_EVERY = (
    6  # the last of every six layers sees everything, where the file does not say otherwise
)
LAYERS_OF_27B = 62


@dataclass(frozen=True)
class ModelArgs(BaseArgs):
    """windows: the positions that each layer sees, None for all; rope_local: of layers with a window."""

    windows: tuple[int | None, ...]
    rope_local: RopeArgs
    final_softcap: float

    @classmethod
    def fields(cls, m: Metadata) -> dict[str, Any]:
        fields = super().fields(m)
        local_base = m.positive("rope.freq_base_swa", 10000.0)
        plain = replace(fields["rope"], base=local_base, scaling="none", factor=1.0)
        return fields | {
            "windows": windows(m, fields["num_layers"]),
            "rope_local": plain,
            "final_softcap": m.positive("final_logit_softcapping", 0.0, zero=0.0),
        }

    @property
    def scale(self) -> float:
        """1 / sqrt(head size); the 27B model uses hidden size over heads instead."""
        if self.num_layers == LAYERS_OF_27B:
            return (self.hidden_size / self.num_heads) ** -0.5
        return super().scale


def windows(m: Metadata, layers: int) -> tuple[int | None, ...]:
    """The window of each layer; the pattern is a period, or one flag a layer that says whether it slides.

    A window of 0 is none; a period of 0 leaves no layer without a window.
    """
    size, name = m.size("attention.sliding_window", 0, zero=0), "attention.sliding_window_pattern"
    if size == 0:
        return (None,) * layers
    if isinstance(m.raw(name), np.ndarray):
        slides = m.get(name, np.ndarray).astype(bool).tolist()
    else:
        period = m.size(name, FULL_EVERY, zero=0)
        slides = [period == 0 or (i + 1) % period != 0 for i in range(layers)]
    if len(slides) < layers:
        raise ValueError(f"{m.architecture}.{name}: expected {layers} flags, found {len(slides)}")
    return tuple(size if slide else None for slide in slides[:layers])


class Attention(llama.Attention):
    """As Llama's, with head norms and half-split rotary pairs."""

    interleaved = False
    head_norms = True


class DecoderLayer(Module):
    """x: (n, hidden) -> (n, hidden); norms before and after both attention and MLP."""

    def __init__(self, args: ModelArgs, w: Weights, rope: Rope, window: int | None) -> None:
        super().__init__()
        size, eps = args.hidden_size, args.norm_eps
        self.input_layernorm = w.norm("attn_norm", size, eps)
        self.self_attn = Attention(args, w, rope, window)
        self.keeps = self.self_attn.keeps
        self.post_attention_layernorm = w.norm("post_attention_norm", size, eps)
        self.pre_feedforward_layernorm = w.norm("ffn_norm", size, eps)
        self.mlp = MLP(args, w, act="gelu")
        self.post_feedforward_layernorm = w.norm("post_ffw_norm", size, eps)

    def __call__(self, x: ops.Array, at: Place) -> ops.Array:
        attended = self.self_attn(x, at, self.input_layernorm)
        x = self.post_attention_layernorm(attended, add=x)
        out = self.mlp(x, self.pre_feedforward_layernorm)
        return self.post_feedforward_layernorm(out, add=x)


class Gemma3Model(Decoder):
    """A batch of n rows -> (n, hidden), normed for the head."""

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__()
        full = args.rope.rope(w.rope_factors(args.rope.dims // 2))
        local = args.rope_local.rope()
        scale = args.hidden_size**0.5
        self.embed_tokens = w.embedding("token_embd", args.vocab_size, args.hidden_size, scale)
        self.layers = [
            DecoderLayer(args, w.layer(i), local if window else full, window)
            for i, window in enumerate(args.windows)
        ]
        self.norm = w.norm("output_norm", args.hidden_size, args.norm_eps)


class Model(LanguageModel):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    args: ModelArgs

    def __init__(self, args: ModelArgs, w: Weights) -> None:
        super().__init__(args, w)
        self.body = Gemma3Model(args, w)

    def finish(self, logits: ops.Array) -> ops.Array:
        cap = self.args.final_softcap
        return ops.softcap(logits, cap) if cap else logits
