"""Text without folders, for reports that are pasted in public: names of users and hosts lie in paths."""

from __future__ import annotations

import re
from pathlib import Path

from ..entry import describe

_PATH = re.compile(r"(?<![\w./])~?(?:/[^\s/:;,'\"()]+)+/?")
_LONGEST = 160


def without_folders(text: str) -> str:
    """Paths become their last part."""
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without one
        home = "/"
    if home != "/":
        text = text.replace(home, "~")  # it may have spaces
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)


def one_line(error: Exception) -> str:
    """What was raised, in one line that is not long; a compiler's first error rather than its head."""
    text = without_folders(describe(error))
    at = text.find("error: ")
    if at > _LONGEST // 2:
        text = f"… {text[at:]}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
