"""Our kernels on NVIDIA GPUs: the metal backend's choices, by the same text. All of it is lazy.

No GPU has run it yet: its kernels compile for sm_80 and sm_90, and the tests run their text on a CPU. So nothing
chooses it by itself.
"""

from __future__ import annotations

import mlx.core as mx

from .metal import LAZY as LAZY
from .metal import MATVEC_ROWS as MATVEC_ROWS
from .metal import attend as attend
from .metal import attend_both_ways as attend_both_ways
from .metal import dequantize as dequantize
from .metal import gate_up as gate_up
from .metal import gather_down as gather_down
from .metal import gather_gate_up as gather_gate_up
from .metal import gather_matmul as gather_matmul
from .metal import gelu as gelu
from .metal import matmul as matmul
from .metal import matmuls as matmuls
from .metal import norm_matmul as norm_matmul
from .metal import put as put
from .metal import rms_norm as rms_norm
from .metal import rotate as rotate
from .metal import route as route
from .metal import rows as rows
from .metal import sigmoid_gate as sigmoid_gate
from .metal import stepper as stepper
from .metal import to_mlx as to_mlx


def prepare(_threads: int | None) -> None:
    """Kernels are compiled when they are first used. Raises OSError where there is no NVIDIA GPU."""
    if not mx.cuda.is_available():
        raise OSError(
            "the cuda backend needs an NVIDIA GPU and mlx[cuda13]; MLX finds no CUDA here"
        )


def wired_limit() -> int | None:
    """Nothing is wired: weights lie in the GPU's memory."""
    return None
