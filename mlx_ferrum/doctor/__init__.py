"""What this machine has, which backend it would run, and whether that computes rightly: `python -m mlx_ferrum.doctor`.

The report is made to be pasted into an issue: nothing in it names a user, a host or a folder.
"""

from .command import main

__all__ = ["main"]
