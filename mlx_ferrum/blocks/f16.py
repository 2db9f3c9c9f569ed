"""F16: IEEE half precision."""

from __future__ import annotations

from types import SimpleNamespace

from ..lazy import mx
from .base import HALF_MAX, Block


class F16(Block, id=1, weights=1):
    fields = {"value": ("f16", 1)}
    limit = HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.value
