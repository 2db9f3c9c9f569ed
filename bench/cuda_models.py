"""Models on an NVIDIA GPU: a prompt of 512 tokens and decode steps, beside llama.cpp's CUDA build if wanted.

A decode step reads all dense weights and the chosen experts once, so it is compared with the bandwidth of a copy within
the GPU's memory. "noted" is the time that Python and MLX take until a step is noted down, before any of it runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cuda_kernels
import llama
import numpy as np
import speed
from timing import Spread, measure, once

import mlx_ferrum
from mlx_ferrum import cli, ops
from mlx_ferrum.engine.choosing import forward
from mlx_ferrum.models.base import LanguageModel

PROMPT, TOKENS, RUNS = 512, 64, 5
WANTED = 0.6  # of the copy bandwidth, in a decode step


def noted(model: LanguageModel) -> float:
    """Milliseconds until a decode step is noted down, the median."""
    run, cache = forward(model), model.make_cache()
    found = []
    for _ in range(TOKENS):
        batch = cache.batch(np.array([[1]]))
        found.append(once(partial(run, batch)))
        batch.advance()
    return 1e3 * statistics.median(found)


def lines(path: Path, copy: float, llama_bench: Path | None) -> Iterator[str]:
    """The figures of a model; copy: bytes a second."""
    start = time.perf_counter()
    model, _ = mlx_ferrum.load(path)
    seconds = time.perf_counter() - start
    step = measure(partial(speed.decode, model, TOKENS), RUNS)
    read = measure(partial(speed.prompt, model, PROMPT), RUNS)
    share = speed.token_bytes(path) * TOKENS / step.median / copy
    theirs: dict[str, float] = {}
    if llama_bench is not None:
        theirs = llama.run(llama_bench, path, llama.Lengths([PROMPT], TOKENS, []), threads=4)
    yield f"{path.stem}: loaded in {seconds:.1f} s, {model.nbytes / seconds / 1e9:.1f} GB/s"
    yield _line(f"prompt {PROMPT}", read.rate(PROMPT), theirs, "")
    reached = f"{share:.0%} of the copy bandwidth, wanted {WANTED:.0%}; {noted(model):.2f} ms noted"
    yield _line(f"decode {TOKENS}", step.rate(TOKENS), theirs, reached)


def _line(test: str, rate: Spread, theirs: dict[str, float], more: str) -> str:
    beside = ""
    if test in theirs:
        other = int(test.split()[1]) / theirs[test]
        beside = f"; llama.cpp {other:.0f}, ratio {rate.median / other:.2f}"
    return f"  {test}: {rate} tok/s{beside}{'; ' * bool(more)}{more}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama-bench", type=Path, metavar="PATH", help="compare with this one")
    asked = parser.parse_args()
    ops.use_backend("cuda")
    copy = cuda_kernels.copy_bandwidth()
    print(f"copy {copy / 1e9:.0f} GB/s")
    for path in asked.models:
        for line in lines(path, copy, asked.llama_bench):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
