"""Gemma 3: the text model, alone or out of a model that sees pictures, too.

Its norms multiply by 1 + w; GGUF files hold 1 + w.
"""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np

from ..architecture import Architecture
from ..modules import HEAD_NORMS, Change

LAYERS_OF_27B = 62
PERIOD = 6  # the last of so many layers sees everything
_PICTURES = re.compile(r"(^|\.)(vision_tower|multi_modal_projector|vision_model)\.")


KINDS = {"full_attention", "sliding_attention"}


class Converter(Architecture):
    """Four norms a layer, head norms, and a window in five of six layers."""

    name = "gemma3"
    written_as = ("Gemma3ForCausalLM", "gemma3_text")
    halves = False
    modules = (
        *Architecture.modules,
        *HEAD_NORMS,
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
    activation = "gelu_pytorch_tanh"
    defaults = {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
    }

    def check(self) -> None:
        super().check()
        if self.config.get("attn_logit_softcapping") or self.config.get(
            "use_bidirectional_attention"
        ):
            raise NotImplementedError(
                "config.json: attn_logit_softcapping and use_bidirectional_attention are not supported"
            )
        scale = self.head_dim if self.layers != LAYERS_OF_27B else self.hidden // self.heads
        if self.number("query_pre_attn_scalar") != scale:
            raise NotImplementedError(
                f"config.json: query_pre_attn_scalar: gemma3 files mean {scale} here, "
                f"found {self.config['query_pre_attn_scalar']}"
            )

    def add(self, w: gguf.GGUFWriter) -> None:
        super().add(w)
        if self.config.get("final_logit_softcapping"):
            w.add_final_logit_softcapping(self.number("final_logit_softcapping"))
        slides = self._slides()
        if any(slides):
            w.add_sliding_window(self.size("sliding_window"))
        if any(slides) and slides != _period(self.layers, PERIOD):
            w.add_sliding_window_pattern(slides)

    def _slides(self) -> list[bool]:
        """Whether each layer has a window."""
        names = self.config.get("layer_types")
        if names is None:
            return _period(self.layers, self.size("sliding_window_pattern", PERIOD))
        if not isinstance(names, list) or len(names) != self.layers or set(map(str, names)) - KINDS:
            raise ValueError(
                f"config.json: layer_types: expected {self.layers} of {' or '.join(sorted(KINDS))}, found {names!r}"
            )
        return [name == "sliding_attention" for name in names]

    def layer(self, i: int) -> dict[str, tuple[int, ...]]:
        norms = ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")
        sizes = (self.head_dim, self.head_dim, self.hidden, self.hidden)
        return super().layer(i) | {
            f"{name}.weight": (size,) for name, size in zip(norms, sizes, strict=True)
        }

    def renamed(self, name: str) -> str | None:
        if _PICTURES.search(name):
            return None
        return super().renamed(
            name.replace("language_model.", "", 1).replace("model.model.", "model.")
        )

    def change(self, name: str) -> Change | None:
        return Change(_plus_one, _minus_one) if name.endswith("norm.weight") else None

    @classmethod
    def describe(cls, args: Any) -> dict[str, Any]:
        """args: a ModelArgs of models/gemma3.py"""
        slides = [window is not None for window in args.windows]
        names = {True: "sliding_attention", False: "full_attention"}
        window = next((window for window in args.windows if window is not None), None)
        divided = args.hidden_size // args.num_heads
        return {
            **super().describe(args),
            "hidden_activation": cls.activation,
            "query_pre_attn_scalar": divided if len(slides) == LAYERS_OF_27B else args.head_dim,
            "rope_local_base_freq": args.rope_local.base,
            "layer_types": [names[slide] for slide in slides],
            "sliding_window_pattern": _period_of(slides),
            **({} if window is None else {"sliding_window": window}),
            **({"final_logit_softcapping": args.final_softcap} if args.final_softcap else {}),
        }


def _plus_one(x: np.ndarray) -> np.ndarray:
    return x + np.float32(1)


def _minus_one(x: np.ndarray) -> np.ndarray:
    return x - np.float32(1)


def _period_of(slides: list[bool]) -> int:
    """The inverse of `_period`. Raises NotImplementedError for layers that no period gives."""
    layers = len(slides)
    found = next((p for p in range(1, layers + 1) if _period(layers, p) == slides), None)
    if found is None:
        raise NotImplementedError(
            "attention.sliding_window_pattern: mlx_lm has windows in all layers but every n-th, "
            f"found {''.join('.w'[slide] for slide in slides)} (w: with a window)"
        )
    return found


def _period(layers: int, period: int) -> list[bool]:
    return [(i + 1) % period != 0 for i in range(layers)]
