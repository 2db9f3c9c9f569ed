"""What kernels take for granted of Metal, tried on the GPU in use, and timings to compare machines by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np

from ..backends.metal import tensor_form
from ..blocks import Q4_K, Q6_K, Block
from ..kernels import matmul as matmul_kernel
from ..kernels import matvec as matvec_kernel
from ..kernels import subnormals, tensor_products
from ..launch import Kernel
from .privacy import one_line
from .weights import random_tensor

LAUNCHES = 200  # in a chain
TILES = (16, 32, 64)  # rows of x
_CELLS = 4096
_GROUP = 256
# A step reads what the last one wrote into the other half of the pool, in another order, and counts what was there.
_STEP = """
    int i = thread_position_in_grid.x, n = threads_per_grid.x, t = step[0];
    const device int* before = pool + t % 2 * n;
    device int* after = (device int*)pool + (t + 1) % 2 * n;
    seen[i] = last[n - 1 - i] + int(before[n - 1 - i] == t);
    after[i] = t + 1;
"""
_FAILURES = (AttributeError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Check:
    """One thing that was tried. outcome: for people; failed: whether kernels compute wrongly without it"""

    name: str
    outcome: str
    failed: bool = False


def run(
    *, launches: int = LAUNCHES, size: int = 4096, copies: int = 4, prompt: int = 512
) -> list[Check]:
    """All checks, and timings of products of `copies` (size, size) weights, and of one with `prompt` rows."""
    tried: list[tuple[str, Callable[[], Check]]] = [
        ("in place", lambda: in_place("in place", 1)),
        ("order", lambda: in_place("order", launches)),
        ("subnormals", halves),
        ("tensor tiles", tensor_tiles),
        *((f"matvec {b.name}", lambda b=b: product(b, size, copies)) for b in (Q4_K, Q6_K)),
        ("matmul Q4_K", lambda: tiles(Q4_K, size, prompt)),
    ]
    return [_tried(name, check) for name, check in tried]


def in_place(name: str, launches: int) -> Check:
    """Whether launches see what the ones before wrote through a const input, where only a bound array orders them."""
    pool = mx.zeros(2 * _CELLS, mx.int32)
    seen = mx.zeros(_CELLS, mx.int32)
    steps = [mx.array([t], mx.int32) for t in range(launches + 1)]
    mx.eval(pool, seen, steps)
    start = time.perf_counter()
    for step in steps:
        (seen,) = _KERNEL(
            [pool, seen, step],
            grid=(_CELLS, 1, 1),
            threadgroup=(_GROUP, 1, 1),
            output_shapes=[(_CELLS,)],
            output_dtypes=[mx.int32],
        )
    found = np.array(seen)
    each = (time.perf_counter() - start) / len(steps)
    right = int((found == len(steps)).sum())
    if right == _CELLS:
        return Check(
            name,
            f"the next launch saw every write; writes {launches}, {each * 1e6:.1f} us a launch",
        )
    return Check(
        name, f"{right} of {_CELLS} cells were right in every launch; writes {launches}", True
    )


def halves() -> Check:
    """Whether subnormal halves count. Either way there is a text of the kernels for it."""
    kept = subnormals.are_kept()
    return Check("subnormals", "halves keep them" if kept else "halves lose them: slower kernels")


def tensor_tiles() -> Check:
    """Whether products of tiles by tensor operations are right. Either way there is a form of the kernels for it."""
    name = "tensor tiles"
    if not tensor_form.has_hardware():
        return Check(name, "not tried: no hardware for them, or macOS before 26.2")
    failures = {columns: tensor_products.failure(columns) for columns in TILES}
    wrong = [f"{columns} rows: {one_line(text)}" for columns, text in failures.items() if text]
    return Check(name, f"not used; {'; '.join(wrong)}" if wrong else "every product was exact")


def tiles(block: type[Block], size: int, prompt: int) -> Check:
    """The time of a product of `prompt` rows by simdgroup matrices, and by tensor operations where they work."""
    rng = np.random.default_rng(block.id)
    w = random_tensor(rng, block, size, size)
    x = mx.array(rng.normal(size=(prompt, size)).astype(np.float32))
    forms = {"simdgroup matrices": False}
    if tensor_form.works(TILES[-1]):
        forms["tensor operations"] = True
    parts = []
    for form, tensor in forms.items():
        best = _best(partial(matmul_kernel.matmul, x, w, columns=TILES[-1], tensor=tensor))
        rate = 2 * prompt * size * size / best / 1e12
        parts.append(f"{form} {best * 1e6:.0f} us, {rate:.2f} TFLOP/s")
    shape = f"{prompt} rows, ({size}, {size})"
    return Check(f"matmul {block.name}", f"{shape}: {'; '.join(parts)}")


def _best(compute: Callable[[], object]) -> float:
    """Seconds of the fastest of three runs, after one that compiles and maps."""
    times: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        mx.eval(compute())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def product(block: type[Block], size: int, copies: int) -> Check:
    """The time of a product of one row, over weights that take turns."""
    rng = np.random.default_rng(block.id)
    ws = [random_tensor(rng, block, size, size) for _ in range(copies)]
    x = mx.array(rng.normal(size=(1, size)).astype(np.float32))
    best = _best(lambda: [matvec_kernel.matvec(x, w) for w in ws]) / copies
    name = f"matvec {block.name}"
    return Check(
        name, f"({size}, {size}): {best * 1e6:.0f} us, {ws[0].nbytes / best / 1e9:.0f} GB/s"
    )


def _tried(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except _FAILURES as error:
        return Check(name, one_line(error), True)


_KERNEL = Kernel("in_place", _STEP, ("pool", "last", "step"), ("seen",), writes=("pool",))
