"""Many texts at once: requests come and go, and each step extends all that run."""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .engine import Engine, Stats
    from .request import Event, Request
else:
    from ..lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            **dict.fromkeys(("Engine", "Stats"), "engine"),
            **dict.fromkeys(("Event", "Request"), "request"),
        },
    )

__all__ = ["Engine", "Event", "Request", "Stats"]
