"""Measure on an NVIDIA GPU where one kernel becomes faster than another, and print the table of the cuda backend.

The last line goes into mlx_ferrum/backends/metal/thresholds.py. Products are timed as in bench/cuda_kernels.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import cuda_kernels
import mlx.core as mx
import numpy as np
import random_weights

from mlx_ferrum import blocks, launch, ops
from mlx_ferrum.backends.metal.thresholds import CUDA, Thresholds
from mlx_ferrum.kernels import gather_matmul, gather_matvec, matmul, matvec, sort_pairs
from mlx_ferrum.tensor import QTensor

K = 4096
ROWS = range(1, matvec.MOST + 1)  # of x
WIDTHS = (128, 256, 512, 1024, 2048, 4096)  # rows of w
EXPERTS, EXPERT_ROWS, USED = 64, 768, 8
PAIRS = (1, 2, 3, 4, 6, 8, 12, 16)  # of an expert, on average
Timing = Callable[[Callable[[QTensor], object], Sequence[QTensor]], float]


def seconds(compute: Callable[[QTensor], object], ws: Sequence[QTensor]) -> float:
    """Of one call, each with a weight of its own."""
    queue = cuda_kernels.Queue()
    with launch.use_runner(queue):
        for w in ws:
            compute(w)
    return queue.seconds() / len(ws)


def last_below(values: Sequence[int], few: Sequence[float], many: Sequence[float]) -> int:
    """The last of `values` up to which `few` takes no longer than `many`; 0 if it does at the first."""
    found = 0
    for value, a, b in zip(values, few, many, strict=True):
        if a > b:
            break
        found = value
    return found


def matvec_rows(block: type[blocks.Block], time: Timing) -> int:
    """Rows of x up to which a matvec is faster than tiles."""
    ws, few, many = cuda_kernels.matrices(block, K, K), [], []
    for n in ROWS:
        x = _normal(n, K)
        few.append(time(lambda w, x=x: matvec.matvec(x, w), ws))
        many.append(time(lambda w, x=x: matmul.matmul(x, w, columns=16), ws))
        print(
            f"{block.name}, {n} rows: matvec {few[-1] * 1e6:.1f} us, tiles {many[-1] * 1e6:.1f} us"
        )
    return last_below(ROWS, few, many)


def few_rows(block: type[blocks.Block], time: Timing) -> int:
    """Rows of w from which four of them a simdgroup are faster than two."""
    x, two, four = _normal(1, K), [], []
    for rows in WIDTHS:
        ws = cuda_kernels.matrices(block, rows, K)
        two.append(time(lambda w: matvec.matvec(x, w, rows=2), ws))
        four.append(time(lambda w: matvec.matvec(x, w, rows=4), ws))
        print(
            f"{block.name}, w of {rows}: two {two[-1] * 1e6:.1f} us, four {four[-1] * 1e6:.1f} us"
        )
    return 2 * last_below(WIDTHS, two, four) or WIDTHS[0]


def pairs_an_expert(block: type[blocks.Block], time: Timing) -> int:
    """Pairs of an expert up to which each pair reads weights for itself faster than tiles."""
    rng, few, many = np.random.default_rng(0), [], []
    raw = random_weights.rows(rng, block, (EXPERTS * EXPERT_ROWS, K), K**-0.5).reshape(-1)
    ws = [QTensor(block, (EXPERTS, EXPERT_ROWS, K), raw) for _ in range(2)]
    for pairs in PAIRS:
        tokens = max(1, pairs * EXPERTS // USED)
        x = _normal(tokens, K)
        ids = mx.array(rng.integers(0, EXPERTS, (tokens, USED)).astype(np.int32))
        few.append(time(lambda w, x=x, ids=ids: gather_matvec.gather_matvec(x, w, ids), ws))
        many.append(time(lambda w, x=x, ids=ids: _tiled(x, w, ids), ws))
        print(
            f"{block.name}, {pairs} pairs: matvec {few[-1] * 1e6:.1f} us, tiles {many[-1] * 1e6:.1f} us"
        )
    return last_below(PAIRS, few, many)


def _tiled(x: mx.array, w: QTensor, ids: mx.array) -> mx.array:
    order = sort_pairs.sort_pairs(ids.reshape(ids.size), EXPERTS, size=16)
    return gather_matmul.gather_matmul(x, w, order)


def _normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def table(block: type[blocks.Block], time: Timing) -> Thresholds:
    """The measured thresholds; that of attention is not measured."""
    return Thresholds(
        matvec_rows=matvec_rows(block, time),
        few_rows=few_rows(block, time),
        pairs_an_expert=pairs_an_expert(block, time),
        threadgroups=CUDA.threadgroups,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", default="Q4_K", help="of the weights (default: %(default)s)")
    asked = parser.parse_args()
    ops.use_backend("cuda")
    found = table(blocks.by_name(asked.type), seconds)
    print(f"{mx.device_info(mx.gpu).get('device_name')}\nCUDA = {found}")


if __name__ == "__main__":
    main()
