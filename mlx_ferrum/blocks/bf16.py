"""BF16: the upper half of a float32."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import Block


class BF16(Block, id=30, weights=1):
    fields = {"value": ("bf16", 1)}
    limit = 2.0**128 - 2.0**120

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.value
