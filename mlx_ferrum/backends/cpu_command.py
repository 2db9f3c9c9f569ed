"""The command line of the cpu backend: builds its library ahead of time and tells what was chosen."""

from __future__ import annotations

import argparse

from ..cli import guarded
from ..kernels.cpu import build, native


def main(argv: list[str] | None = None) -> int:
    """Build the library, if need be, and print what it is; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_ferrum.backends.cpu",
        description="Compile the CPU kernels for this processor ahead of their first use.",
    )
    parser.add_argument(
        "--level",
        choices=build.LEVELS,
        default="native",
        help="the instruction set; lower ones than this processor's are for tests (default: native)",
    )
    level = parser.parse_args(argv).level

    def run() -> int:
        print(table(level))
        return 0

    return guarded(run)


def table(level: str) -> str:
    """What was chosen, a line each. Raises BuildError if there is no compiler or it fails."""
    native.choose(level)
    rows = {
        "compiler": build.find_compiler(),
        "flags": " ".join(build.flags(level)),
        "library": build.library(level),
        "SIMD": native.library().ferrum_simd().decode(),
        "threads": native.cores(),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items())
