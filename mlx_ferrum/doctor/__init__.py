"""What this machine has, which backend it would run, and whether that computes rightly: `python -m mlx_ferrum.doctor`.

The report is made to be pasted into an issue: nothing in it names a user, a host or a folder.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .command import main
else:
    from ..lazy import attributes

    __getattr__ = attributes(__name__, {"main": "command"})

__all__ = ["main"]
