"""Processes whose memory is limited, the page cache of the files that they read included."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Group:
    """A control group of Linux. Needs root."""

    def __init__(self, path: Path, limit: str, peak: str) -> None:
        self._path, self._limit, self._peak = path, path / limit, path / peak

    @classmethod
    def make(cls, name: str) -> Group:
        """Of version 2, or of 1. Raises OSError where none can be made."""
        if (ROOT / "cgroup.controllers").exists():
            group = cls(ROOT / name, "memory.max", "memory.peak")
        else:
            folder = ROOT / "memory" / name
            group = cls(folder, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
        group._path.mkdir()
        return group

    def limit(self, nbytes: int) -> None:
        """Set the limit."""
        self._limit.write_text(str(nbytes))

    @property
    def peak(self) -> int:
        """The most bytes in use so far, page cache included."""
        return int(self._peak.read_text())

    def run(self, command: Sequence[str]) -> str:
        """What a command prints that runs in the group. Raises ValueError with its last lines if it fails."""
        join = f'echo $$ > {self._path}/cgroup.procs && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", join, "sh", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"{command[0]} failed: {done.stderr.strip()[-400:]}")
        return done.stdout

    def remove(self) -> None:
        """Remove it; nothing may run in it any more."""
        self._path.rmdir()


@contextmanager
def limited(nbytes: int) -> Iterator[Group]:
    """A group with a limit."""
    group = Group.make(f"ferrum-{os.getpid()}")
    try:
        group.limit(nbytes)
        yield group
    finally:
        group.remove()


def forget(path: Path) -> None:
    """Drop what the page cache has of a file."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
