"""`python -m mlx_ferrum.doctor`, and the console script `ferrum-doctor`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.doctor.command")


if __name__ == "__main__":
    sys.exit(main())
