"""Qwen 3.5 and 3.6, dense: delta nets between attention layers.

The text model, alone or out of one that sees pictures.
"""

from __future__ import annotations

from ..hybrid import DELTA_NET, Hybrid
from ..modules import ATTENTION, HEAD_NORMS, MLP


class Converter(Hybrid):
    """GGUF files call it `qwen35`."""

    name = "qwen35"
    written_as = ("Qwen3_5ForCausalLM", "qwen3_5")
    modules = (*ATTENTION, *HEAD_NORMS, *DELTA_NET, *MLP)
