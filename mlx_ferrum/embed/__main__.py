"""`python -m mlx_ferrum.embed`, and the console script `ferrum-embed`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.embed.command")


if __name__ == "__main__":
    sys.exit(main())
