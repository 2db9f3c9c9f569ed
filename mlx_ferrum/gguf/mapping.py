"""A file mapped whole, read-only. It must not change meanwhile: a read past a new end is a SIGBUS, not an error."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

import numpy as np

from .. import amounts


class MappedFile:
    """The file at `path`, mapped. Raises FileNotFoundError if there is none, ValueError if it cannot be a model."""

    def __init__(self, path: Path) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file") from None
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a special file"
            raise ValueError(f"{path}: found {kind}, expected a GGUF file")
        if status.st_size == 0:
            raise ValueError(f"{path}: found an empty file, expected GGUF")
        self.path = path
        with path.open("rb") as file:
            self._status = os.fstat(file.fileno())
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._ask_for_large_pages()

    def __repr__(self) -> str:
        return f"MappedFile({self.path.name!r}, {amounts.size(len(self.mapped))})"

    def _ask_for_large_pages(self) -> None:
        """Large pages, where Linux has them for files, take fewer steps to read from disk and to find in memory."""
        advice = getattr(mmap, "MADV_HUGEPAGE", None)
        if advice is not None:
            with contextlib.suppress(OSError):  # a kernel may be built without them
                self.mapped.madvise(advice)

    def array(self) -> np.ndarray:
        """The whole file: (size,) uint8, read-only, page-aligned; it keeps the mapping alive."""
        return np.frombuffer(self.mapped, np.uint8)

    def check_same(self, file: int) -> None:
        """Raises ValueError if a descriptor, opened later, is of another file."""
        now, before = os.fstat(file), self._status
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            raise ValueError(f"{self.path}: replaced while it was opened, expected the same file")

    def check(self, *, thorough: bool = True) -> None:
        """Raises ValueError if the file was cut short since it was mapped, or written to.

        thorough: also find what was written in place, which takes 10 us instead of 1
        A file that was removed, or replaced by another one, does no harm: the mapping holds the old one.
        """
        expected, found = len(self.mapped), self.mapped.size()
        if found < expected:
            raise ValueError(
                f"{self.path}: cut short while in use, found {found} bytes, expected {expected}"
            )
        if not thorough:
            return
        try:
            now = self.path.stat()
        except OSError:
            return
        before = self._status
        is_same = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
        if is_same and now.st_mtime_ns != before.st_mtime_ns:
            raise ValueError(f"{self.path}: written to while in use, expected the file as loaded")
