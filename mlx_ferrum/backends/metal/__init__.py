"""Our kernels on Apple GPUs. All operations are lazy; operations.py chooses the kernel for each shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from ... import launch
from ...tensor import QTensor
from . import thresholds
from .operations import *  # noqa: F403 -- operations.py is the only list of operations


def prepare(_threads: int | None) -> None:
    """Kernels are compiled when they are first used. Raises OSError where there is no Metal."""
    if not launch.can_run():
        raise OSError("the metal backend needs a Mac with an Apple GPU; MLX finds no Metal here")
    thresholds.use(thresholds.METAL)


def place(tensors: Sequence[QTensor]) -> None:
    """Weights are windows on the mapped file."""


def wired_limit() -> int | None:
    """What Metal recommends as the most to use at a time; None on another runner."""
    if not mx.metal.is_available():
        return None
    info: Mapping[str, Any] = mx.device_info(mx.gpu)
    return info.get("max_recommended_working_set_size")
