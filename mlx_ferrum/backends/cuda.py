"""The kernels of the metal backend on NVIDIA GPUs, chosen in the same way. All operations are lazy.

The kernels compile for sm_80 and sm_90, and the tests run their text on a CPU; no GPU has run them yet. So this
backend is never the default.
"""

from __future__ import annotations

import mlx.core as mx

from .metal.attention import attend_few
from .metal.operations import *  # noqa: F403 -- operations.py is the only list of operations

attend = attend_few  # the other kernel multiplies Metal's matrices


def prepare(_threads: int | None) -> None:
    """Kernels are compiled when they are first used. Raises OSError where there is no NVIDIA GPU."""
    if not mx.cuda.is_available():
        raise OSError(
            "the cuda backend needs an NVIDIA GPU and mlx[cuda13]; MLX finds no CUDA here"
        )


def wired_limit() -> int | None:
    """Nothing is wired: weights lie in the GPU's memory."""
    return None
