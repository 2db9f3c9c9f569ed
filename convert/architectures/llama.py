"""Llama 2 and 3, and what is built like them: SmolLM2, TinyLlama, Yi.

The checkpoint turns the first half of a head with the second half, GGUF files hold the two rows of a pair side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import gguf
import numpy as np

from ..architecture import Architecture
from ..modules import PROJECTIONS, Change

CODE_LLAMA = 32016  # tokens, of which these are at fixed places
FILL_TOKENS = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}


class Converter(Architecture):
    """Query and key rows change places."""

    name = "llama"
    written_as: ClassVar[tuple[str, str] | None] = ("LlamaForCausalLM", "llama")
    biases = {
        "attention_bias": [f"self_attn.{name}_proj" for name in "qkvo"],
        "mlp_bias": [f"mlp.{name}" for name in PROJECTIONS],
    }
    llama3_rope = True
    writes_head_dim: ClassVar[bool] = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if self.writes_head_dim:
            self.config["head_dim"] = self.head_dim

    def add(self, w: gguf.GGUFWriter) -> None:
        super().add(w)
        w.add_vocab_size(self.vocabulary)
        w.add_rope_dimension_count(self.head_dim)
        if self.vocabulary == CODE_LLAMA:
            for name, token in FILL_TOKENS.items():
                getattr(w, f"add_{name}_token_id")(token)

    def renamed(self, name: str) -> str | None:
        found = super().renamed(name)
        return None if found is None else _full(found)

    def change(self, name: str) -> Change | None:
        counts = {"attn_q": self.heads, "attn_k": self.kv_heads}
        heads = next((n for part, n in counts.items() if f".{part}." in name), None)
        if heads is None:
            return None
        return Change(partial(interleaved, heads=heads), partial(halved, heads=heads), rows=True)

    def space_prefix(self, tokenizer_config: Mapping[str, Any]) -> bool | None:
        found = tokenizer_config.get("add_prefix_space")
        return None if found is None else bool(found)


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """x: (heads * d, ...): row i of the first half of a head beside row i of its second half."""
    halves = x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(x.shape)


def halved(x: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    pairs = x.reshape(heads, len(x) // heads // 2, 2, *x.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(x.shape)


def _full(name: str) -> str:
    """The name in a model with a head; `LlamaModel` alone leaves out the beginning."""
    return f"model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.")) else name
