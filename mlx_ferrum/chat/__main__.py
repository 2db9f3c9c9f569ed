"""`python -m mlx_ferrum.chat`, and the console script `ferrum-chat`."""

import sys

from mlx_ferrum import entry


def main() -> int:
    """Run the command; returns the exit code."""
    return entry.run("mlx_ferrum.chat.command")


if __name__ == "__main__":
    sys.exit(main())
