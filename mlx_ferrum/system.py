"""What the operating system says: lines of its files, and what its programs print."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

_SECONDS = 5  # that a program which is asked may take


def is_mac() -> bool:
    """Whether this is macOS."""
    return platform.system() == "Darwin"


def first_line(path: str | Path, pattern: str) -> str:
    """The group of `pattern` in the first line that it matches from its start; nothing without one."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(f"^{pattern}", text, re.MULTILINE)
    return found[1] if found else ""


def sysctl(name: str) -> int | None:
    """A number that macOS knows by name; None for text, for unknown names and on other systems."""
    if not is_mac():
        return None
    text = output("sysctl", "-n", name).strip()
    return int(text) if text.isdecimal() else None


def output(program: str, *arguments: str) -> str:
    """What a program prints; nothing if it is not there, fails or takes too long."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout
