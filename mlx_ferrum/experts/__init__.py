"""Which experts a model chooses for a text: `python -m mlx_ferrum.experts MODEL --prompt TEXT`."""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .choices import Choices, observe
    from .command import main
    from .picture import heat_map
    from .routing import Routes, routes
else:
    from ..lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            **dict.fromkeys(("Choices", "observe"), "choices"),
            "heat_map": "picture",
            "main": "command",
            **dict.fromkeys(("Routes", "routes"), "routing"),
        },
    )

__all__ = ["Choices", "Routes", "heat_map", "main", "observe", "routes"]
