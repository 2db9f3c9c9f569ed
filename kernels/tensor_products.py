"""tensor_products: whether products by Metal 4's tensor operations are right here, in one small launch."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_ferrum.blocks import F16
from mlx_ferrum.tensor import QTensor

from .matmul import matmul

_ROWS, _K = 67, 80  # not whole tiles, nor whole steps
_LARGEST_X, _LARGEST_W = 2047, 8  # integers: halves hold all of x, and float32 every sum


def failure(columns: int) -> str | None:
    """What is wrong with a product of tiles of `columns` rows of x: what Metal says, or that numbers are wrong.

    None if it compiles, runs and is exact. Waits for the launch.
    """
    rng = np.random.default_rng(columns)
    x = rng.integers(-_LARGEST_X, _LARGEST_X, (columns + 1, _K), endpoint=True)
    weights = rng.integers(-_LARGEST_W, _LARGEST_W, (_ROWS, _K), endpoint=True)
    w = QTensor(F16, (_ROWS, _K), weights.astype(np.float16).view(np.uint8).reshape(-1))
    try:
        found = np.array(matmul(mx.array(x, mx.float32), w, columns=columns, tensor=True))
    # Metal's compiler refuses the text, or the GPU the launch
    except (RuntimeError, ValueError) as error:
        return " ".join(str(error).split())
    wrong = int((found != x @ weights.T).sum())
    return f"{wrong} of {found.size} products are wrong" if wrong else None
