"""Qwen 2 and 2.5, and what is distilled into them: biases on queries, keys and values."""

from __future__ import annotations

from typing import ClassVar

from mlx_ferrum.notice import warn

from ..architecture import Architecture


class Converter(Architecture):
    """Names only; weights stay as they are."""

    name = "qwen2"
    written_as: ClassVar[tuple[str, str] | None] = ("Qwen2ForCausalLM", "qwen2")
    biases = {"": [f"self_attn.{name}_proj" for name in "qkv"]}
    lacks = Architecture.lacks | {"head_dim"}
    defaults = {"max_position_embeddings": 32768}

    def check(self) -> None:
        super().check()
        if self.config.get("use_sliding_window") and self.config.get("sliding_window"):
            warn("sliding_window is left out: every position sees all before it")

    def renamed(self, name: str) -> str | None:
        found = super().renamed(name)
        bare = found is not None and found.startswith(("layers.", "embed_tokens.", "norm."))
        return f"model.{found}" if bare else found
