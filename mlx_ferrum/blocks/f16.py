"""F16: IEEE half precision."""

from types import SimpleNamespace

import mlx.core as mx

from .base import HALF_MAX, Block


class F16(Block, id=1, weights=1):
    fields = {"value": ("f16", 1)}
    limit = HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.value
