"""Large numbers for people: 98 MB, 0.6 B."""

from __future__ import annotations

import re

_PREFIXES = ("", "k", "M", "G", "T")
_LARGE = ((1e9, "B"), (1e6, "M"))
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B?")


def size(nbytes: float) -> str:
    """Bytes in decimal units: "98 MB", "4.9 GB"."""
    step, value = 0, float(nbytes)
    while value >= 999.5 and step < len(_PREFIXES) - 1:
        step, value = step + 1, value / 1000
    number = f"{value:.1f}" if step and value < 9.95 else f"{value:.0f}"
    return f"{number} {_PREFIXES[step]}B"


def read_size(text: str) -> int:
    """Bytes from 500M or 2G, which are powers of 1,000, or 17.5GiB. Raises ValueError for anything else, and for 0."""
    found = _SIZE.fullmatch(text.strip().upper())
    step = (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " ") if found else 0
    nbytes = int(float(found[1]) * step) if found and len(found[1]) < 20 else 0
    if not nbytes:
        raise ValueError(f"expected a size such as 500M or 2G, found {text[:60]!r}")
    return nbytes


def count(number: int) -> str:
    """Parameters: "7.6 M", "134 M", "1.1 B"; small numbers as they are."""
    for unit, letter in _LARGE:
        if number >= 0.9995 * unit:
            value = number / unit
            return f"{value:.1f} {letter}" if value < 99.95 else f"{value:.0f} {letter}"
    return f"{number:,}"
