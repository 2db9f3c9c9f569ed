"""`python -m mlx_ferrum.gguf`, and the console script `ferrum-gguf`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.gguf.command")


if __name__ == "__main__":
    sys.exit(main())
