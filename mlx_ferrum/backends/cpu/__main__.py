"""`python -m mlx_ferrum.backends.cpu`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.backends.cpu.command")


if __name__ == "__main__":
    sys.exit(main())
