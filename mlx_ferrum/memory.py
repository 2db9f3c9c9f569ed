"""How much memory there is and how much of it is free: of the machine, and of the control groups of this process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .system import first_line, is_mac, output

_ROOT = Path("/")
_CACHED = ("inactive_file", "active_file")  # kinds of memory that a group gives up when it needs it
_FREE_ON_A_MAC = ("free", "inactive", "speculative")  # kinds of pages


class _Interface(NamedTuple):
    """Of control groups. cached: before the names of _CACHED, so that groups within the group count."""

    folder: str
    limit: str
    usage: str
    cached: str


_SECOND = _Interface("", "memory.max", "memory.current", "")
_FIRST = _Interface("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


class _Group(NamedTuple):
    """What a control group may use in all, and still, in bytes."""

    limit: int
    free: int


def total(root: Path = _ROOT) -> int:
    """Bytes of the machine, or what this process may use of them. root: where proc and sys are."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(whole, *(group.limit for group in _groups(root)), whole)


def available(root: Path = _ROOT) -> int | None:
    """Bytes that can be used now without swapping; files in the page cache count as free. None if unknown.

    root: as of `total`
    """
    found = _free_on_a_mac() if is_mac() else _free_on_linux(root)
    return None if found is None else min(found, *(group.free for group in _groups(root)), found)


def _free_on_linux(root: Path) -> int | None:
    kilobytes = first_line(root / "proc/meminfo", r"MemAvailable:\s*(\d+)")
    return int(kilobytes) * 1024 if kilobytes else None


def _free_on_a_mac() -> int | None:
    said = output("vm_stat")
    size = re.search(r"page size of (\d+) bytes", said)
    pages = [re.search(rf"^Pages {kind}:\s*(\d+)", said, re.MULTILINE) for kind in _FREE_ON_A_MAC]
    counts = [int(found[1]) for found in pages if found]
    return int(size[1]) * sum(counts) if size and len(counts) == len(pages) else None


def _groups(root: Path) -> Iterator[_Group]:
    """The control groups of this process that have a limit, its own and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            interface = _FIRST if controllers else _SECOND
            top = root / "sys/fs/cgroup" / interface.folder
            yield from _around(top, path, interface)


def _around(top: Path, path: str, interface: _Interface) -> Iterator[_Group]:
    """A container may see its own group as the top one, and not the folders of its path."""
    folder = top / path.lstrip("/")
    while folder.is_relative_to(top):
        limit, usage = (first_line(folder / name, r"(\d+)$") for name in interface[1:3])
        if limit and usage:
            cached = [
                first_line(folder / "memory.stat", rf"{interface.cached}{kind} (\d+)$")
                for kind in _CACHED
            ]
            used = int(usage) - sum(int(nbytes) for nbytes in cached if nbytes)
            yield _Group(int(limit), max(int(limit) - used, 0))
        folder = folder.parent
