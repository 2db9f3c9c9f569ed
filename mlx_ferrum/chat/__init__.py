"""A conversation in the terminal: `python -m mlx_ferrum.chat`."""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .command import main
else:
    from ..lazy import attributes

    __getattr__ = attributes(__name__, {"main": "command"})

__all__ = ["main"]
