"""Text generation: `generate_step` (tokens), `stream_generate` (text as it comes), `generate`.

`python -m mlx_ferrum.generate` is the command line.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .batch import BatchResponse, BatchStats, batch_generate
    from .command import main
    from .progress import PromptBar
    from .prompt import PromptCache, encode_prompt
    from .step import Progress, generate_step
    from .stream import GenerationResponse, figures, generate, stream_generate
else:
    from ..lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            **dict.fromkeys(("BatchResponse", "BatchStats", "batch_generate"), "batch"),
            "main": "command",
            **dict.fromkeys(("PromptCache", "encode_prompt"), "prompt"),
            "PromptBar": "progress",
            **dict.fromkeys(("Progress", "generate_step"), "step"),
            **dict.fromkeys(
                ("GenerationResponse", "figures", "generate", "stream_generate"), "stream"
            ),
        },
    )

__all__ = [
    "BatchResponse",
    "BatchStats",
    "GenerationResponse",
    "Progress",
    "PromptBar",
    "PromptCache",
    "batch_generate",
    "encode_prompt",
    "figures",
    "generate",
    "generate_step",
    "main",
    "stream_generate",
]
