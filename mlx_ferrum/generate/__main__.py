"""`python -m mlx_ferrum.generate`, and the console script `ferrum-generate`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.generate.command")


if __name__ == "__main__":
    sys.exit(main())
