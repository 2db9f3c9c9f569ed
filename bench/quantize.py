"""Errors and speed of the encoders, beside llama.cpp's.

    python bench/quantize.py                                      # our errors and speed
    python bench/quantize.py --libggml libggml-base.so            # and their ratio to llama.cpp's
    python bench/quantize.py --weights model.safetensors --types Q4_K Q6_K

Each type quantizes rows of random weights (normal, Laplace, Student's t with 3 degrees of freedom, normal with
outliers) and those of `--weights`, with all columns alike and with a log-normal importance for each. The error is the
mean of importance * (x - found)², as a ratio to llama.cpp's, or to the weights' own square. Speed is that of one
thread, in million weights a second: the median of `--rounds` runs, the lowest and the highest.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from timing import measure

from mlx_ferrum import blocks, cli
from mlx_ferrum.kernels.quantize import native

K = 768
Encode = Callable[[], np.ndarray]


class Case(NamedTuple):
    """x: (rows, k) float32; importance: (k,) float32 or None"""

    block: type[blocks.Block]
    x: np.ndarray
    importance: np.ndarray | None

    def error(self, raw: np.ndarray) -> float:
        """Mean weighted square error of these blocks."""
        off = np.asarray(self.block.dequantize(mx.array(raw))).astype(np.float64) - self.x
        return float(np.mean(off**2 * (1 if self.importance is None else self.importance)))

    def square(self) -> float:
        """Mean weighted square of the weights."""
        square = self.x.astype(np.float64) ** 2
        return float(np.mean(square * (1 if self.importance is None else self.importance)))


def random_weights(rows: int) -> dict[str, np.ndarray]:
    """Names of distributions, and (rows, K) float32 of each."""
    rng, shape = np.random.default_rng(0), (rows, K)
    outliers = rng.standard_normal(shape) * np.where(rng.random(shape) < 0.004, 12, 1)
    found = {
        "normal": rng.standard_normal(shape),
        "laplace": rng.laplace(size=shape),
        "t3": rng.standard_t(3, shape),
        "outliers": outliers,
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


def file_weights(path: Path, rows: int) -> np.ndarray:
    """(rows, K) float32 or fewer, from all F32 matrices of a safetensors file whose size is a multiple of K."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", 8 + length)
    parts = []
    for entry in header.values():
        if entry.get("dtype") == "F32" and len(entry["shape"]) == 2:
            start, stop = entry["data_offsets"]
            if (stop - start) % (4 * K) == 0:
                parts.append(data[start:stop].view(np.float32).reshape(-1, K))
    if not parts:
        raise ValueError(f"{path}: no F32 matrix whose size is a multiple of {K}")
    each = -(-rows // len(parts))
    return np.concatenate([part[:each] for part in parts])


def ours(case: Case, effort: str) -> Encode:
    """On one thread."""
    block, x = case.block, case.x
    importance = None if case.importance is None else case.importance[None]
    raw = np.empty((len(x), block.row_bytes(x.shape[1])), np.uint8)

    def encode() -> np.ndarray:
        options = {"type": block.id, "limit": block.limit, "effort": effort, "threads": 1}
        native.quantize(x, importance, raw, **options)
        return raw

    return encode


def theirs(library: ctypes.CDLL, case: Case) -> Encode:
    """llama.cpp's, by libggml."""
    block, x = case.block, case.x
    function, pointer, number = library.ggml_quantize_chunk, ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    function.restype = ctypes.c_size_t
    raw = np.empty((len(x), block.row_bytes(x.shape[1])), np.uint8)
    importance = None if case.importance is None else case.importance.ctypes.data

    def encode() -> np.ndarray:
        function(block.id, x.ctypes.data, raw.ctypes.data, 0, *x.shape, importance)
        return raw

    return encode


def speed(encode: Encode, weights: int, rounds: int) -> str:
    """Million weights a second."""
    return str(measure(encode, rounds).rate(weights / 1e6))


def report(cases: dict[str, Case], library: ctypes.CDLL | None, rounds: int) -> None:
    """A line for each effort, and one for llama.cpp."""
    first = next(iter(cases.values()))
    base = {name: case.square() for name, case in cases.items()}
    if library is not None:
        base = {name: case.error(theirs(library, case)()) for name, case in cases.items()}
        print(f"  {'llama.cpp':9} {speed(theirs(library, first), first.x.size, rounds)}")
    for effort in native.EFFORTS:
        ratios = (case.error(ours(case, effort)()) / base[name] for name, case in cases.items())
        named = "  ".join(f"{name} {r:.4g}" for name, r in zip(cases, ratios, strict=True))
        print(f"  {effort:9} {speed(ours(first, effort), first.x.size, rounds):24} {named}")


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    names = [block.name for block in blocks.SUPPORTED if block.weights > 1]
    parser.add_argument("--libggml", type=Path, help="llama.cpp's libggml-base")
    parser.add_argument("--weights", type=Path, help="a safetensors file with F32 matrices")
    parser.add_argument("--types", nargs="+", choices=names, default=names, metavar="TYPE")
    parser.add_argument("--rows", type=cli.positive, default=256, help=f"of {K} weights")
    parser.add_argument("--rounds", type=cli.positive, default=5)
    args = parser.parse_args()
    library = None if args.libggml is None else ctypes.CDLL(str(args.libggml.resolve()))
    weights = random_weights(args.rows)
    if args.weights is not None:
        weights[args.weights.stem] = file_weights(args.weights, args.rows)
    importance = np.exp(1.5 * np.random.default_rng(1).standard_normal(K)).astype(np.float32)
    for name in args.types:
        block = blocks.by_name(name)
        # llama.cpp makes Q8_K of activations only
        known = None if block is blocks.Q8_K else library
        for count, what in ((None, "columns alike"), (importance, "columns of importance")):
            print(f"{name}, {what}")
            report({key: Case(block, x, count) for key, x in weights.items()}, known, args.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
