"""The kernels of the metal backend on NVIDIA GPUs, chosen in the same way. All operations are lazy.

The kernels compile for sm_80 and sm_90, and the tests run their text on a CPU; no GPU has run them yet. So this
backend is never the default.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from .. import amounts
from ..progress import bar
from ..tensor import QTensor
from .metal import thresholds
from .metal.attention import attend_few
from .metal.operations import *  # noqa: F403 -- operations.py is the only list of operations

attend = attend_few  # the other kernel multiplies Metal's matrices


OLDEST = 80  # compute capability: asynchronous reductions of a warp, and tensor cores that take 16 x 8 x 16
PAGE = 16384  # what MLX rounds large arrays up to


def prepare(_threads: int | None) -> None:
    """Kernels are compiled when they are first used. Raises OSError where there is no NVIDIA GPU that runs them."""
    check_gpu()
    thresholds.use(thresholds.CUDA)


def check_gpu() -> None:
    """Raises OSError unless there is an NVIDIA GPU that the kernels can run on."""
    if not mx.cuda.is_available():
        raise OSError(
            "the cuda backend needs an NVIDIA GPU and mlx[cuda13]; MLX finds no CUDA here"
        )
    from ..kernels.cuda.runner import architecture

    found = architecture()
    if int("".join(filter(str.isdigit, found))) < OLDEST:
        raise OSError(f"the cuda backend needs a GPU of sm_{OLDEST} or newer, found {found}")


def place(tensors: Sequence[QTensor]) -> None:
    """Copy weights into the GPU's memory, one after the other, with a progress bar; parts share what they are part of.

    Raises OSError before anything is copied if they take more than is free.
    """
    if not mx.cuda.is_available():
        return  # another runner executes the kernels, and reads memory of the host
    from ..kernels.cuda import upload

    wholes = {id(w.whole): w.whole for w in tensors if not w.whole.is_uploaded}
    needed = sum(-(-w.nbytes // PAGE) * PAGE for w in wholes.values())
    if needed > (free := upload.free_memory()):
        raise OSError(
            f"the weights take {amounts.size(needed)} of the GPU's memory, but {amounts.size(free)} are free"
        )
    total = sum(w.nbytes for w in wholes.values())
    with bar(total=total, desc="weights", unit="B", unit_scale=True, leave=False) as shown:
        for whole in wholes.values():
            _ = whole.array
            shown.update(whole.nbytes)
    for w in tensors:
        _ = w.array


def wired_limit() -> int | None:
    """Nothing is wired: weights lie in the GPU's memory."""
    return None
