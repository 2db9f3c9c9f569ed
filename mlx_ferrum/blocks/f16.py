"""F16: IEEE half precision."""

from types import SimpleNamespace

import mlx.core as mx

from .base import Block


class F16(Block, id=1, weights=1):
    fields = {"value": ("f16", 1)}

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.value
