"""The CPU backend's products alone: GB/s of weight bytes and G weights/s, by block type and batch.

Prints a Markdown table and writes kernels.json. Up to a batch of 8 the weights come from memory: so
many matrices take turns that no cache holds them. Larger batches are bound by arithmetic; G weights/s
counts a weight once for each row of the batch. On a Mac, the GPU's products of a prompt come after them: by simdgroup
matrices, and by tensor operations where the GPU has hardware for them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import random_weights
from timing import Spread, hardware, measure

from mlx_ferrum import blocks, cli, ops
from mlx_ferrum.doctor import metal
from mlx_ferrum.kernels.cpu import build, native
from mlx_ferrum.tensor import QTensor

RESULTS = Path(__file__).parent / "results"
ROWS, K = 4096, 4096
TURNS = 256 << 20  # bytes of weights that are read before one is read again
SMALL = 8  # the largest batch that memory may bound
PROMPT = 512  # rows on a GPU


def weights(block: type[blocks.Block]) -> Iterator[QTensor]:
    """Matrices (ROWS, K) of a type, TURNS bytes in all.

    They are copies of one draw: how fast a product is does not hang on the values.
    """
    raw = random_weights.rows(np.random.default_rng(0), block, (ROWS, K), K**-0.5).reshape(-1)
    for _ in range(-(-TURNS // raw.size)):
        yield QTensor(block, (ROWS, K), raw.copy())


def speed(turns: list[QTensor], batch: int, runs: int) -> Spread:
    """Seconds of one product, x: (batch, K)."""
    x: Any = np.random.default_rng(1).standard_normal((batch, K), np.float32)
    chosen = turns if batch <= SMALL else turns[:1]

    def run() -> None:
        for weight in chosen:
            ops.matmul(x, weight)

    taken = measure(run, runs)
    return Spread(*(seconds / len(chosen) for seconds in taken))


def measure_type(block: type[blocks.Block], batches: list[int], runs: int) -> dict[int, Any]:
    """GB/s and G weights/s, by batch."""
    turns = list(weights(block))
    found = {}
    for batch in batches:
        seconds = speed(turns, batch, runs)
        found[batch] = {
            "gb_s": seconds.rate(turns[0].nbytes / 1e9),
            "gweights_s": seconds.rate(batch * ROWS * K / 1e9),
        }
    return found


def print_line(name: str, found: dict[int, Any]) -> None:
    """One line of the table: GB/s / G weights/s."""
    cells = [
        f"{rates['gb_s'].median:.1f} / {rates['gweights_s'].median:.0f}" for rates in found.values()
    ]
    print(f"| {name:6} | " + " | ".join(cell.ljust(12) for cell in cells) + " |", flush=True)


def measure_metal(chosen: list[type[blocks.Block]]) -> dict[str, str]:
    """The doctor's timing of a product of PROMPT rows, by block type."""
    with mx.stream(mx.gpu):
        return {block.name: metal.tiles(block, K, PROMPT).outcome for block in chosen}


def parse() -> argparse.Namespace:
    """The command line."""
    names = [block.name for block in blocks.SUPPORTED]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("types", nargs="*", default=names, metavar="TYPE", help=f"of {', '.join(names)}")
    add("--batches", type=cli.positive, nargs="+", default=[1, 4, 8, 64, 512], metavar="N")
    add("--threads", type=cli.positive, default=native.cores(), metavar="N", help="default: all")
    add("--level", choices=build.LEVELS, default="native", help="instruction set (default: native)")
    add("--runs", type=cli.positive, default=3, metavar="N", help="counted runs (default: 3)")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    return parser.parse_args()


def main() -> int:
    """Measure, print, save."""
    args = parse()
    chosen = [blocks.by_name(name) for name in args.types]
    native.choose(args.level)
    ops.use_backend("cpu", threads=args.threads)
    results: dict[str, Any] = {"command": shlex.join(sys.argv), "hardware": hardware()}
    results["threads"], results["shape"] = args.threads, [ROWS, K]
    results["simd"] = native.library().ferrum_simd().decode()
    print(", ".join(f"{key} {value}" for key, value in results["hardware"].items()))
    print(
        f"GB/s of weights / G weights/s, {results['simd']}, {args.threads} threads,",
        f"weights {ROWS} x {K}, medians\n",
    )
    print("| batch  | " + " | ".join(str(batch).ljust(12) for batch in args.batches) + " |")
    print("| ------ |" + " ------------ |" * len(args.batches))
    results["types"] = {}
    for block in chosen:
        found = measure_type(block, args.batches, args.runs)
        print_line(block.name, found)
        results["types"][block.name] = {
            batch: {name: rate._asdict() for name, rate in rates.items()}
            for batch, rates in found.items()
        }
    if mx.metal.is_available():
        results["metal"] = measure_metal(chosen)
        print(*(f"\n{name}, Metal: {outcome}" for name, outcome in results["metal"].items()))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kernels.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
