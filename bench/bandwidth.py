"""Gigabytes a second that this machine reads from memory: `python bench/bandwidth.py --help`.

bandwidth.cpp is compiled for each run. The buffer is many times the size of any cache.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from timing import Spread, hardware, measure

from mlx_ferrum import cli
from mlx_ferrum.kernels.cpu import build, native

SOURCE = Path(__file__).with_suffix(".cpp")
BYTES = 1 << 30
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread")


def read(threads: int, *, buffer: np.ndarray | None = None, runs: int = 5) -> Spread:
    """GB/s of reading `buffer`, by default 1 GiB of memory.

    buffer: (bytes,) uint8; one that is not many times the size of the caches is read faster than memory is
    """
    data = _memory() if buffer is None else buffer
    passes = -(-BYTES // (4 * data.size))
    library = _library()

    def run() -> None:
        library.read_memory(data.ctypes.data, data.size, threads, passes)

    return measure(run, runs).rate(data.size * passes / 1e9)


def thread_counts() -> list[int]:
    """1, 2, 4 … and all cores that this process may use."""
    cores = native.cores()
    return sorted({2**i for i in range(cores.bit_length())} | {cores})


@cache
def _memory() -> np.ndarray:
    """Every page is written, or all would be the same page of zeros."""
    return np.full(BYTES, 1, np.uint8)


@cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bandwidth.so"
        compiler = build.find_compiler()
        subprocess.run([*compiler, *FLAGS, str(SOURCE), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    library.read_memory.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int)
    library.read_memory.restype = ctypes.c_uint64
    return library


def main() -> int:
    """Print one line a number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=cli.positive, nargs="+", default=thread_counts())
    args = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in hardware().items()))
    for threads in args.threads:
        print(f"{threads} threads: {read(threads)} GB/s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
