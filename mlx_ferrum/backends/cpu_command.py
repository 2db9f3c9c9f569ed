"""The command line of the cpu backend: builds its library ahead of time and tells what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_ferrum import entry
from mlx_ferrum.parser import Parser

from ..kernels.cpu import build, native


@entry.command
def main(argv: Sequence[str] | None) -> int:
    """Build the library, if need be, and print what it is; returns the exit code."""
    parser = Parser(
        "backends.cpu",
        description="Compile the CPU kernels for this processor ahead of their first use.",
    )
    parser.add_argument(
        "--level",
        choices=build.LEVELS,
        default="native",
        help="instruction set (default: native, the best of this processor; the others are for tests)",
    )
    level = parser.parse_args(argv).level
    entry.begin()
    print(table(level))
    return 0


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
