"""`python -m mlx_ferrum.experts`, and the console script `ferrum-experts`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.experts.command")


if __name__ == "__main__":
    sys.exit(main())
