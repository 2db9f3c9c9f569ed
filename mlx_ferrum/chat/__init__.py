"""Conversations: `Conversation` in Python, `python -m mlx_ferrum.chat` in the terminal."""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .command import main
    from .conversation import Conversation
else:
    from ..lazy import attributes

    __getattr__ = attributes(__name__, {"Conversation": "conversation", "main": "command"})

__all__ = ["Conversation", "main"]
