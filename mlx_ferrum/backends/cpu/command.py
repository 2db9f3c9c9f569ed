"""The command line of the cpu backend: builds its library ahead of time and prints which one is in use."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_ferrum import entry
from mlx_ferrum.parser import Parser

from ...kernels.cpu import build, native


@entry.command
def main(argv: Sequence[str] | None) -> int:
    """Build the library, if need be, and print what it is; returns the exit code."""
    parser = Parser(
        "backends.cpu",
        description="Print which CPU kernels this machine uses; compile them if none fit.",
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
    """What was chosen, a line each. Raises BuildError if it has to be built and cannot be."""
    native.choose(level)
    path, library = native.path(), native.library()
    is_prebuilt = build.is_prebuilt(path)
    rows = {
        "library": path,
        "origin": "prebuilt, in the package" if is_prebuilt else "compiled on this machine",
        "compiler": library.ferrum_compiler().decode(),
        "flags": " ".join(build.flags(build.level_of(path))),
        "SIMD": library.ferrum_simd().decode(),
        "threads": native.cores(),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items())
