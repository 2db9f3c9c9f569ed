"""LLM inference on MLX that runs GGUF models as they are."""

import os
import sys
from types import ModuleType

TYPE_CHECKING = False  # to type checkers the constant of typing, whose import takes 10 ms
_exists = os.path.exists

# A checkout keeps kernels/ and convert/ beside this folder; a wheel has them inside.
_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 -- pathlib takes 10 ms
if not _exists(f"{_here}/kernels") and _exists(f"{_here}/../pyproject.toml"):
    __path__.append(os.path.dirname(_here))  # noqa: PTH120

__version__ = "0.1.0"

__all__ = [
    "GenerationResponse",
    "batch_generate",
    "embed",
    "generate",
    "load",
    "stream_generate",
    "use_backend",
]

if TYPE_CHECKING:
    from .embed import embed
    from .generate import GenerationResponse, batch_generate, generate, stream_generate
    from .load import load
    from .ops import use_backend
else:
    from .lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            **dict.fromkeys(
                ("GenerationResponse", "batch_generate", "generate", "stream_generate"), "generate"
            ),
            "embed": "embed",
            "load": "load",
            "use_backend": "ops",
        },
    )


class _Package(ModuleType):
    """`mlx_ferrum.generate` and `mlx_ferrum.load` are functions, though submodules have the same names.

    Python binds a submodule to its package once it is imported: that must not hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
