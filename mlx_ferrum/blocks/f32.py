"""F32: plain float32."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import FLOAT_MAX, Block


class F32(Block, id=0, weights=1):
    fields = {"value": ("f32", 1)}
    limit = FLOAT_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.value
