"""The backends that the tests run, and what exactness each promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from cuda import cuda_on_cpu
from msl import metal_on_cpu

from mlx_ferrum import ops
from mlx_ferrum.kernels.cpu import build, native

FLOAT_ERROR = 5e-7
SHARED, LARGEST = 32, 16256  # of activations.h
FEW_ROWS = 8  # of activations
# What executes the kernels where there is no GPU for them.
RUNNERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "metal": metal_on_cpu,
    "cuda": cuda_on_cpu,
}


@dataclass(frozen=True)
class Backend:
    """A backend as the tests choose it.

    level: the instruction set, of build.LEVELS
    integers: whether products take activations as integers, 32 of them with a scale
    logit: how far a logit of a small random model may lie from float32's
    pieces: how far it may lie from itself when the same text comes in other pieces: sums have another order then
    attention: how far attention may lie from float32's, of keys and values that half precision holds
    tiles: how far products of many rows may lie from float32's, of the largest, besides
    staged: how far those of 2 to 8 rows of activations may, of |w| |x|, besides
    """

    name: str
    level: str = "native"
    integers: bool = True
    logit: float = 2e-2
    pieces: float = 5e-3
    attention: float = 1e-6
    tiles: float = 0
    staged: float = 0

    def __str__(self) -> str:
        return self.name if self.level == "native" else f"{self.name}-{self.level}"

    @property
    def is_gpu(self) -> bool:
        """Whether our kernels for GPUs compute, as on metal and cuda, which round and check alike."""
        return self.name in RUNNERS

    @property
    def kind(self) -> str:
        """What bounds of tests are named by: "gpu", or its name."""
        return "gpu" if self.is_gpu else self.name

    def array(self, x: Any) -> Any:
        """An activation of the kind that this backend makes."""
        return np.asarray(x) if self.name == "cpu" else mx.array(x)

    def product_error(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """How far x wᵀ may be off: x: (..., k), w: (rows, k) float64 -> (..., rows).

        Float32 sums: rounding a term, and the parts of a weight that cancel in it, costs 2^-24 of the largest.
        Integers: the largest of 32 is 16,256, so errors are uniform in half a step to either side; six standard
        deviations of their sum.
        """
        terms = np.abs(x).sum(-1)[..., None] * np.abs(w).max(-1)
        rounded = FLOAT_ERROR * terms
        if 1 < math.prod(x.shape[:-1]) <= FEW_ROWS:
            rounded = rounded + self.staged * (np.abs(x) @ np.abs(w).T)
        if not self.integers:
            return rounded
        k = x.shape[-1]
        padded = np.pad(np.abs(x), [*[(0, 0)] * (x.ndim - 1), (0, -k % SHARED)])
        largest = padded.reshape(*x.shape[:-1], -1, SHARED).max(-1).repeat(SHARED, -1)[..., :k]
        variance = (largest / LARGEST) ** 2 / 12 @ (w**2).T
        return rounded + 6 * np.sqrt(variance)

    @contextmanager
    def in_use(self) -> Iterator[Backend]:
        """Use this backend, and then again the one that was in use."""
        before, level = ops.backend_name(), native.choose(self.level)
        try:
            with RUNNERS.get(self.name, nullcontext)():
                ops.use_backend(self.name)
                yield self
        finally:
            native.choose(level)
            ops.use_backend(before)


REFERENCE = Backend("reference", integers=False, logit=2e-3, pieces=2e-4)  # both sides are float32
# tiles and activations that rows of w share are float16, attention is computed in it
METAL = Backend(
    "metal", integers=False, logit=6e-2, pieces=2e-2, attention=4e-3, tiles=2e-3, staged=2**-11
)
CUDA = replace(METAL, name="cuda")  # only with --cuda
# "native" compiles the code of the best level that has a name
LEVELS = [level for n, level in enumerate(build.levels()) if n != 1 or level == "portable"]
CPU, *LOWER = (Backend("cpu", level) for level in LEVELS)
CPU_PORTABLE = LOWER[-1]
BACKENDS = (REFERENCE, CPU, CPU_PORTABLE, METAL)
FAST = BACKENDS if mx.metal.is_available() else (REFERENCE, CPU, CPU_PORTABLE)
