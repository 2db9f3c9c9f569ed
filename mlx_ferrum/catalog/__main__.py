"""`python -m mlx_ferrum.catalog`, and the console script `ferrum-catalog`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.catalog.command")


if __name__ == "__main__":
    sys.exit(main())
