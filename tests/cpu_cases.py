"""Arguments of native operations, and what the reference backend makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import random_blocks
from backends import REFERENCE

from mlx_ferrum import blocks
from mlx_ferrum.tensor import QTensor


def random_weight(block: type[blocks.Block], rows: int, k: int, seed: int) -> QTensor:
    drawn = random_blocks.matrix(np.random.default_rng(seed), block.name, rows, k)
    return QTensor(block, (rows, k), drawn.data.reshape(-1))


def normal(*shape: int, seed: int = 0) -> Any:
    """Float32 activations, as the cpu backend holds them."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def by_reference(op: Callable[..., Any], *args: Any, **options: Any) -> np.ndarray:
    """The op of the reference backend on the same arguments."""
    with REFERENCE.in_use():
        found = op(*(mx.array(a) if isinstance(a, np.ndarray) else a for a in args), **options)
        return np.array(found)
