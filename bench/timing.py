"""One way to time things: runs in turn, the median and the spread, and what they ran on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_ferrum.kernels.cpu import native

HERE = Path(__file__).parent


class Spread(NamedTuple):
    """The median, lowest and highest of several runs; the unit is the caller's."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Sum up the values of all runs, at least one."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def rate(self, n: float) -> Spread:
        """For seconds: `n` things in this time, a second."""
        return Spread(n / self.median, n / self.high, n / self.low)

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def once(run: Callable[[], object]) -> float:
    """The seconds that one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def once_busy(run: Callable[[], object]) -> float:
    """The seconds that one run keeps this thread busy, whatever else the machine does."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def measure(run: Callable[[], object], runs: int) -> Spread:
    """Seconds of `run`, after one run that is not counted."""
    run()
    return Spread.of(once(run) for _ in range(runs))


def alternate(
    programs: Mapping[str, Callable[[], Mapping[str, float]]], runs: int
) -> dict[str, dict[str, Spread]]:
    """Let several programs do the same tests in turn, A B A B, so that all meet the same machine.

    programs: by name, a call that does every test once and gives the seconds of each, by name
    returns: by program, by test
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            for test, taken in program().items():
                seconds[name].setdefault(test, []).append(taken)
    return {
        name: {test: Spread.of(all_) for test, all_ in tests.items()}
        for name, tests in seconds.items()
    }


class Others:
    """How much of the machine others take from its creation on: processes, and guests beside this one.

    A program that waits at barriers loses far more to them than one that does not, so a comparison
    means little unless this is near 0.
    """

    def __init__(self) -> None:
        self.start, self.busy = time.perf_counter(), _busy_elsewhere()

    def share(self) -> float | None:
        """Of all cores, 0 to 1; None where the system does not say."""
        busy = _busy_elsewhere()
        if busy is None or self.busy is None:
            return None
        cores = (os.cpu_count() or 1) * (time.perf_counter() - self.start)
        return max(0.0, (busy - self.busy) / cores)


def _busy_elsewhere() -> float | None:
    """Seconds that cores have worked for others than this process and its finished children."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, *rest = map(int, stat.read_text().split()[1:9])
    ticks = user + nice + system + sum(rest)
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def save(path: Path, results: dict[str, Any], draw: Callable[[dict[str, Any], Path], None]) -> None:
    """As JSON and as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, path.with_suffix(".png"))
    print(f"\nsaved: {path} and {path.with_suffix('.png').name}")


def hardware(backend: str = "cpu") -> dict[str, str | int]:
    """The processor, how many of its cores this process may use, the system, the versions, what `backend` runs on."""
    found = {"cpu": processor(), "cores": native.cores(), "system": platform.platform(terse=True)}
    found |= {"python": platform.python_version(), "mlx": mx.__version__, "backend": backend}
    if backend == "cpu":
        found["kernels"] = native.library().ferrum_simd().decode()
    elif mx.default_device() == mx.gpu:
        found["gpu"] = str(mx.device_info()["device_name"])
    return found | {"revision": revision()}


def processor() -> str:
    """The name of the processor, as the system says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def revision() -> str:
    """The commit of this checkout, with a + if files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
