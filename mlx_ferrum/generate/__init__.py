"""Text generation: `generate_step` (tokens), `stream_generate` (text as it comes), `generate`.

`python -m mlx_ferrum.generate` is the command line.
"""

from .command import main
from .progress import PromptBar
from .prompt import PromptCache, encode_prompt
from .step import Progress, generate_step
from .stream import GenerationResponse, figures, generate, stream_generate

__all__ = [
    "GenerationResponse",
    "Progress",
    "PromptBar",
    "PromptCache",
    "encode_prompt",
    "figures",
    "generate",
    "generate_step",
    "main",
    "stream_generate",
]
