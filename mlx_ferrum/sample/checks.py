"""Arguments checked by type and range; NumPy's numbers count as numbers, True and False do not."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Raises ValueError unless value is a finite number, low <= value <= high."""
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    if not is_number or not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value!r}, expected {_range('a number', low, high)}")


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ValueError unless value is an integer, low <= value <= high."""
    is_integer = not isinstance(value, bool) and isinstance(value, Integral)
    if not is_integer or value < low or (high is not None and value > high):
        top = math.inf if high is None else high
        raise ValueError(f"{name} is {value!r}, expected {_range('an integer', low, top)}")


def short(value: Any) -> str:
    """A value as an error says it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _range(what: str, low: float, high: float) -> str:
    if low == -math.inf:
        return what
    return f"{what} of at least {low}" if high == math.inf else f"{what} from {low} to {high}"
