"""One way to time things: repeat, take the median and the spread, say on what."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx


class Timing(NamedTuple):
    """Seconds: median, shortest and longest of the runs."""

    median: float
    low: float
    high: float

    def per_second(self, n: int) -> str:
        """`n` things in this time, as a rate with its range."""
        return f"{n / self.median:.1f} ({n / self.high:.1f} to {n / self.low:.1f})"


def measure(run: Callable[[], None], runs: int) -> Timing:
    """Time `run`, after one run that is not counted."""
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def hardware() -> str:
    """The processor or chip, its threads, and the MLX version."""
    info = Path("/proc/cpuinfo")
    names = []
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = f"{len(names)} threads, " if names else ""
    return f"{name}, {threads}{platform.system()}, MLX {mx.__version__} on {mx.default_device()}"
