"""Weight conversion: Hugging Face and MLX folders to GGUF and back, quantizing, comparing.

`python -m mlx_ferrum.convert` is the command line. Each command is a file in `commands/`.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .comparing import compare
    from .comparison import Comparison, Divergence, TensorError, TensorErrors
    from .quantizing import quantize
else:
    from mlx_ferrum.lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            "compare": "comparing",
            **dict.fromkeys(
                ("Comparison", "Divergence", "TensorError", "TensorErrors"), "comparison"
            ),
            "quantize": "quantizing",
        },
    )

__all__ = ["Comparison", "Divergence", "TensorError", "TensorErrors", "compare", "quantize"]
