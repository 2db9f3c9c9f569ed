"""F16: IEEE half precision."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ..lazy import mx
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
