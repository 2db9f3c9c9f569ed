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
        "--portable",
        action="store_true",
        help="the kernels without SIMD of a particular processor, as the tests use them",
    )
    portable = parser.parse_args(argv).portable

    def run() -> int:
        print(table(portable))
        return 0

    return guarded(run)


def table(portable: bool) -> str:
    """What was chosen, a line each. Raises BuildError if there is no compiler or it fails."""
    native.choose(portable=portable)
    rows = {
        "compiler": build.find_compiler(),
        "flags": " ".join(build.flags(portable=portable)),
        "library": build.library(portable=portable),
        "SIMD": native.library().ferrum_simd().decode(),
        "threads": native.cores(),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items())
