"""What checked mode found, with the place in the kernel's text."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .compiler import include
from .native import Raw
from .signature import Signature


@dataclass(frozen=True)
class Finding:
    """A fault of a kernel.

    kind: "race", "out of bounds" …
    detail: what memory, or how many threads
    file, line: empty and 0 if it has no place in the text
    """

    kind: str
    detail: str
    kernel: str
    file: str
    line: int

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.kind}: {self.detail} [{self.kernel}]"


def located(signature: Signature, library: Path, raw: Raw) -> Finding:
    """The finding with names for what the runtime counts."""

    def name(found: re.Match[str]) -> str:
        return signature.buffers[int(found[1])].name

    file, line = _place(library, raw.site) if raw.site else ("", 0)
    return Finding(
        raw.kind, re.sub(r"\bbuffer (\d+)", name, raw.detail), signature.kernel, file, line
    )


@functools.cache
def _place(library: Path, site: int) -> tuple[str, int]:
    """The innermost line around a return address that is a kernel's and not of the host's headers."""
    done = subprocess.run(
        ["addr2line", "-i", "-e", str(library), hex(site - 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    for frame in done.stdout.splitlines():
        found = re.match(r"(.+):(\d+)", frame)
        if found and not found[1].startswith(str(include())):
            return found[1], int(found[2])
    return "", 0
