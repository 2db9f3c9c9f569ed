"""Gemma 3: the text model, alone or out of a model that sees pictures, too.

Its norms multiply by 1 + w; GGUF files hold 1 + w.
"""

from __future__ import annotations

import re

import gguf
import numpy as np

from ..architecture import Architecture, Converted

LAYERS_OF_27B = 62
PERIOD = 6  # the last of so many layers sees everything
_PICTURES = re.compile(r"(^|\.)(vision_tower|multi_modal_projector|vision_model)\.")


class Converter(Architecture):
    """Four norms a layer, head norms, and a window in five of six layers."""

    name = "gemma3"
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
        if names is not None:
            return [name == "sliding_attention" for name in names]
        period = self.config.get("sliding_window_pattern", PERIOD)
        return _period(self.layers, period)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        norms = ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")
        sizes = (self.head_dim, self.head_dim, self.hidden, self.hidden)
        return super().shapes() | {
            f"{name}.weight": (size,) for name, size in zip(norms, sizes, strict=True)
        }

    def renamed(self, name: str) -> str | None:
        if _PICTURES.search(name):
            return None
        return super().renamed(
            name.replace("language_model.", "", 1).replace("model.model.", "model.")
        )

    def changed(self, tensor: Converted) -> Converted:
        return tensor.mapped(_plus_one) if tensor.name.endswith("norm.weight") else tensor


def _plus_one(x: np.ndarray) -> np.ndarray:
    return x + np.float32(1)


def _period(layers: int, period: int) -> list[bool]:
    return [(i + 1) % period != 0 for i in range(layers)]
