"""F32: plain float32."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np

from .base import Block


class F32(Block, id=0, weights=1):
    fields = {"value": ("f32", 1)}
    limit = float(np.finfo(np.float32).max)

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.value

    @classmethod
    def encode(cls, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": x}
