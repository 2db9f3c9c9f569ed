"""The private folder that compiled libraries are kept in, and what is removed from it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .compiler import BuildError

KEPT_DAYS = 30
_NEW_SECONDS = 60  # a build folder this young may not have its lock yet
_LOCK = "lock"


def cache_folder() -> Path:
    """A folder that only this user can write: in the user's cache, or in /tmp where that cannot be written.

    Raises BuildError if there is none.
    """
    folders = [Path(tempfile.gettempdir()) / f"mlx_ferrum-{os.getuid()}"]
    base = _user_cache()
    if base is not None:
        folders.insert(0, base / "mlx_ferrum" / "kernels")
    for folder in folders:
        if _is_private(folder):
            return folder
    raise BuildError(
        f"no folder that this user alone can write: looked at {' and '.join(map(str, folders))}"
    )


@contextmanager
def build_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder for one build, locked while it is in use and removed afterwards."""
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix="build-") as name,
        (Path(name) / _LOCK).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def clean(folder: Path) -> None:
    """Remove what killed builds left, and libraries and GPU code unused for long; those that are loaded stay so."""
    for left in folder.glob("build-*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for path in (*folder.glob("*.so"), *folder.glob("*.cubin")):
        with contextlib.suppress(OSError):  # another process removed it
            if path.stat().st_mtime < oldest:
                path.unlink()


def _is_abandoned(folder: Path) -> bool:
    """Whether no process holds the lock of a build folder."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime > _NEW_SECONDS
        return False
    except OSError:
        return False


def _user_cache() -> Path | None:
    """The user's cache by the custom of the platform; None for a user without a home."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and sys.platform != "darwin":
        return Path(xdg)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _is_private(folder: Path) -> bool:
    """Whether the folder is there, writable, and nobody else can put a library into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError:
        return False
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not others
