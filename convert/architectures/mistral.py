"""Mistral: Llama with fewer key-value heads. A window of attention is left out, as in llama.cpp."""

from __future__ import annotations

from typing import ClassVar

from mlx_ferrum.notice import warn

from . import llama


class Converter(llama.Converter):
    """As Llama's, and written as Llama on the way back."""

    written_as: ClassVar[tuple[str, str] | None] = None
    defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131072}

    def check(self) -> None:
        super().check()
        window = self.config.get("sliding_window")
        if window and window < self.size("max_position_embeddings"):
            warn(f"sliding_window {window} is left out: every position sees all before it")
