"""`python -m mlx_ferrum.convert`, and the console script `ferrum-convert`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.convert.command")


if __name__ == "__main__":
    sys.exit(main())
