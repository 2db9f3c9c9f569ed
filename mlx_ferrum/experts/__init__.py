"""Which experts a model chooses for a text: `python -m mlx_ferrum.experts MODEL --prompt TEXT`."""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .choices import Choices, observe
    from .command import main
else:
    from ..lazy import attributes

    __getattr__ = attributes(
        __name__, {"Choices": "choices", "observe": "choices", "main": "command"}
    )

__all__ = ["Choices", "main", "observe"]
