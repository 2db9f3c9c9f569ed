"""Qwen 3.5 and 3.6, dense: delta nets between attention layers.

The text model, alone or out of one that sees pictures.
"""

from __future__ import annotations

from ..hybrid import Hybrid


class Converter(Hybrid):
    """GGUF files call it `qwen35`."""

    name = "qwen35"
    written_as = None
