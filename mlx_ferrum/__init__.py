"""LLM inference on MLX that runs GGUF models as they are."""

from pathlib import Path

# A checkout keeps kernels/ and convert/ beside this folder; a wheel has them inside.
_here = Path(__file__).parent
if not (_here / "kernels").exists() and (_here.parent / "pyproject.toml").exists():
    __path__.append(str(_here.parent))

from .generate import GenerationResponse, generate, stream_generate  # noqa: E402
from .load import load  # noqa: E402
from .ops import use_backend  # noqa: E402

__version__ = "0.1.0"

__all__ = ["GenerationResponse", "generate", "load", "stream_generate", "use_backend"]
