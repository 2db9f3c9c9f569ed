"""The Metal kernels for few rows of x: GB/s of weights, by block type and rows of x, for either way to read x.

`alone`: each simdgroup reads x for itself, as the backend has it for one row; `staged`: a threadgroup reads it once,
into its memory, as the backend has it for more (kernels/staged.metal). Prints a Markdown table and writes
metal_kernels.json. So many matrices take turns that no cache holds them; the time includes the launches.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import random_weights
from timing import Spread, alternate, hardware, once

from mlx_ferrum import blocks, cli
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.launch import can_run
from mlx_ferrum.tensor import QTensor

RESULTS = Path(__file__).parent / "results"
TURNS = 256 << 20  # bytes of weights that are read before one is read again
WAYS = {"alone": False, "staged": True}


def weights(block: type[blocks.Block], size: int, turns: int) -> list[QTensor]:
    """Matrices (size, size) of a type, `turns` bytes in all: copies of one draw."""
    raw = random_weights.rows(np.random.default_rng(0), block, (size, size), size**-0.5).reshape(-1)
    ws = [QTensor(block, (size, size), raw.copy()) for _ in range(-(-turns // raw.size))]
    mx.eval([w.array for w in ws])
    return ws


def product(ws: list[QTensor], x: mx.array, staged: bool) -> dict[str, float]:
    """The seconds of one product, of a chain of one with each matrix."""
    return {"product": once(lambda: mx.eval([matvec(x, w, staged=staged) for w in ws])) / len(ws)}


def speeds(ws: list[QTensor], batch: int, runs: int) -> dict[str, Spread]:
    """GB/s of weights by the way to read x, which take turns."""
    x = mx.random.normal((batch, ws[0].shape[1]))
    mx.eval(x)
    programs: dict[str, Callable[[], dict[str, float]]] = {
        way: partial(product, ws, x, staged) for way, staged in WAYS.items()
    }
    for program in programs.values():
        program()  # compiles
    found = alternate(programs, runs)
    return {way: tests["product"].rate(ws[0].nbytes / 1e9) for way, tests in found.items()}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("types", nargs="*", default=["Q4_K", "Q6_K", "Q8_0", "Q4_0"], metavar="TYPE")
    add("--batches", type=cli.positive, nargs="+", default=[1, 2, 4, 8], metavar="N")
    add("--size", type=cli.positive, default=4096, metavar="N", help="of the square matrices")
    add("--turns", type=cli.positive, default=TURNS, metavar="BYTES", help="of different weights")
    add("--runs", type=cli.positive, default=5, metavar="N", help="counted runs (default: 5)")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    return parser.parse_args()


def main() -> int:
    """Measure, print, save. Raises ValueError where there is no Metal."""
    args = parse()
    if not can_run():
        raise ValueError("metal_kernels: MLX finds no Metal here, expected an Apple GPU")
    results: dict[str, Any] = {"command": shlex.join(sys.argv), "hardware": hardware("metal")}
    print(", ".join(f"{key} {value}" for key, value in results["hardware"].items()))
    print("GB/s of weights, medians and spread\n")
    print("| type | rows of x | " + " | ".join(WAYS) + " |")
    print("| --- | ---: |" + " ---: |" * len(WAYS))
    results["types"] = {}
    for name in args.types:
        ws = weights(blocks.by_name(name), args.size, args.turns)
        found = results["types"][name] = {}
        for batch in args.batches:
            rates = speeds(ws, batch, args.runs)
            print(
                f"| {name} | {batch} | " + " | ".join(map(str, rates.values())) + " |", flush=True
            )
            found[batch] = {way: rate._asdict() for way, rate in rates.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "metal_kernels.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
