"""Our kernels on an NVIDIA GPU, one at a time: microseconds, GB/s of weights, share of the copy bandwidth, TFLOP/s.

Launches of a kind are noted down once and replayed by the driver, each with weights of its own, so that they come
from memory and no launch of Python's is in the time. Neighbours in the queue wait for one another, as in a model.
"""

from __future__ import annotations

import argparse
import statistics
import time

import mlx.core as mx
import numpy as np
import random_weights

from mlx_ferrum import blocks, launch, ops
from mlx_ferrum.kernels.cuda import driver, runner, upload
from mlx_ferrum.kernels.cuda.source import ENTRY, key, scalars
from mlx_ferrum.tensor import QTensor

TURNS = 512 << 20  # bytes of weights that are read before one is read again
REPEATS, COPIES = 9, 8


class Queue:
    """Collects launches, as a runner, and replays them."""

    def __init__(self) -> None:
        self.stream, self.kept, self.launches = driver.Stream(), [], []
        self.copies: list[tuple[int, int, int]] = []  # to, from, bytes

    def __call__(self, kernel: launch.Kernel, call: launch.Launch) -> list[mx.array]:
        outputs = [
            mx.zeros(s, d) for s, d in zip(call.output_shapes, call.output_dtypes, strict=True)
        ]
        arrays = [mx.contiguous(x) for x in call.arrays]
        mx.eval(arrays, outputs)
        self.kept += [*arrays, *outputs]
        made = key(call)
        code = driver.function(runner.machine_code(kernel, made), ENTRY)
        pointers = [upload.address(x) for x in (*arrays, *outputs)]
        grid = [-(-n // t) for n, t in zip(call.grid, call.threadgroup, strict=True)]
        block = [min(n, t) for n, t in zip(call.grid, call.threadgroup, strict=True)]
        self.launches.append((code, grid, block, pointers, scalars(kernel, call, made.partial)))
        return outputs

    def seconds(self) -> float:
        """Of one replay of all launches and copies, the median."""
        self.stream.begin()
        for one in self.launches:
            self.stream.launch(*one)
        for copy in self.copies:
            self.stream.copy(*copy)
        graph = self.stream.end()
        found = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            self.stream.replay(graph)
            self.stream.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])


def copy_bandwidth() -> float:
    """Bytes a second read and written by copies of 1 GiB within the GPU's memory, one after the other."""
    queue = Queue()
    x, y = mx.zeros((1 << 28,), mx.uint32), mx.zeros((1 << 28,), mx.uint32)
    mx.eval(x, y)
    queue.kept += [x, y]
    queue.copies += [(upload.address(y), upload.address(x), x.nbytes)] * COPIES
    return 2 * COPIES * x.nbytes / queue.seconds()


def matrices(block: type[blocks.Block], rows: int, k: int) -> list[QTensor]:
    """Matrices (rows, k) of a type, TURNS bytes in all, in the GPU's memory."""
    raw = random_weights.rows(np.random.default_rng(0), block, (min(rows, 1024), k), k**-0.5)
    raw = np.tile(raw.reshape(-1), -(-rows // min(rows, 1024)))[: rows * block.row_bytes(k)]
    found = [QTensor(block, (rows, k), raw) for _ in range(max(2, min(-(-TURNS // raw.size), 64)))]
    mx.eval([w.array for w in found])
    return found


def measure(x: mx.array, ws: list[QTensor]) -> float:
    """Seconds of a product of x and one of the matrices."""
    queue = Queue()
    with launch.use_runner(queue):
        for w in ws:
            ops.matmul(x, w)
    return queue.seconds() / len(ws)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=["Q4_K", "Q6_K", "Q8_0"])
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "14336x4096"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 512])
    asked = parser.parse_args()
    ops.use_backend("cuda")
    peak = copy_bandwidth()
    name = mx.device_info(mx.gpu).get("device_name")
    print(f"{name}: copy {peak / 1e9:.0f} GB/s")
    for type_name in asked.types:
        block = blocks.by_name(type_name)
        for shape in asked.shapes:
            rows, k = map(int, shape.split("x"))
            ws = matrices(block, rows, k)
            for batch in asked.batches:
                x = mx.random.normal((batch, k))
                mx.eval(x)
                s = measure(x, ws if batch <= 8 else ws[:8])
                rate, flops = ws[0].nbytes / s, 2 * batch * rows * k / s
                print(
                    f"| {type_name:6} | {shape:12} | {batch:4} | {s * 1e6:8.1f} us | {rate / 1e9:6.0f} GB/s "
                    f"| {rate / peak:5.0%} | {flops / 1e12:6.1f} TFLOP/s |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
