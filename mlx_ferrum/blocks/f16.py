"""F16: IEEE half precision."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np

from .base import Block
from .fit import HALF_MAX


class F16(Block, id=1, weights=1):
    fields = {"value": ("f16", 1)}
    limit = HALF_MAX

    @classmethod
    def decode(cls, block: SimpleNamespace) -> mx.array:
        return block.value

    @classmethod
    def encode(cls, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": x}
