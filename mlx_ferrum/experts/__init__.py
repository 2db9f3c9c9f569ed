"""Which experts a model chooses for a text: `python -m mlx_ferrum.experts MODEL --prompt TEXT`."""

from .choices import Choices, observe
from .command import main

__all__ = ["Choices", "main", "observe"]
