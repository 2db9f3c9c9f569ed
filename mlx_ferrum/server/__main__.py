"""`python -m mlx_ferrum.server`, and the console script `ferrum-server`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.server.command")


if __name__ == "__main__":
    sys.exit(main())
