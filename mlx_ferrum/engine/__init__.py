"""Many texts at once: requests come and go, and each step extends all that run."""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .engine import Engine
    from .request import Event, Request
    from .stats import Stats
else:
    from ..lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            "Engine": "engine",
            "Stats": "stats",
            **dict.fromkeys(("Event", "Request"), "request"),
        },
    )

__all__ = ["Engine", "Event", "Request", "Stats"]
