"""F32: plain float32."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ..lazy import mx
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
