"""A conversation in the terminal: `python -m mlx_ferrum.chat`."""

from .command import main

__all__ = ["main"]
