"""Large numbers for people: 98 MB, 0.6 B."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T")
_LARGE = ((1e9, "B"), (1e6, "M"))


def size(nbytes: float) -> str:
    """Bytes in decimal units: "98 MB", "4.9 GB"."""
    step, value = 0, float(nbytes)
    while value >= 999.5 and step < len(_PREFIXES) - 1:
        step, value = step + 1, value / 1000
    number = f"{value:.1f}" if step and value < 9.95 else f"{value:.0f}"
    return f"{number} {_PREFIXES[step]}B"


def count(number: int) -> str:
    """Parameters: "7.6 M", "134 M", "1.1 B"; small numbers as they are."""
    for unit, letter in _LARGE:
        if number >= 0.9995 * unit:
            value = number / unit
            return f"{value:.1f} {letter}" if value < 99.95 else f"{value:.0f} {letter}"
    return f"{number:,}"
