"""`show MODEL`: the metadata and the tensors of a GGUF file, as `python -m mlx_ferrum.gguf` prints them."""

from mlx_ferrum.gguf.command import main

__all__ = ["main"]
