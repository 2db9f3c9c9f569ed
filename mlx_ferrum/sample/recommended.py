"""The sampling that a GGUF file recommends in its metadata, `general.sampling.*`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .processors import make_processors
from .samplers import make_sampler

PREFIX = "general.sampling."


@dataclass(frozen=True)
class Recommended:
    """What a file recommends.

    Attributes:
        values: arguments of `make_sampler` and `make_processors` by name; empty if there are none.
        ignored: one line for each key that has a bad value or is not supported.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def recommended(metadata: Mapping[str, Any]) -> Recommended:
    """Read `general.sampling.*` from the metadata of a file; a bad value is ignored, never an error."""
    values: dict[str, Any] = {}
    ignored = []
    for key, value in metadata.items():
        if not key.startswith(PREFIX):
            continue
        try:
            values |= _arguments(key.removeprefix(PREFIX), value)
        except ValueError as error:
            ignored.append(f"{key} is ignored: {error}")
    return Recommended(values, tuple(ignored))


def _arguments(name: str, value: Any) -> dict[str, Any]:
    """The arguments that one key gives. Raises ValueError for a bad value or an unsupported key."""
    if name in ("temp", "top_p", "min_p", "xtc_probability", "xtc_threshold"):
        chosen: dict[str, Any] = {name: _number(value)}
        make_sampler(**{"temp": 1.0, "xtc_probability": 0.5, **chosen})  # checks the range
        return chosen
    if name == "penalty_repeat":
        penalty: dict[str, Any] = {"repetition_penalty": _number(value)}
        make_processors(**penalty)
        return penalty
    if name == "penalty_last_n":
        return {"penalty_window": _window(value)}
    if name == "top_k":
        return {"top_k": max(_whole(value), 0)}  # llama.cpp: 0 or less switches it off
    if name == "mirostat" and _whole(value) == 0:
        return {}
    raise ValueError("not supported")


def _window(value: Any) -> int | None:
    """llama.cpp: -1 stands for the whole context, which is None here."""
    window = _whole(value)
    if window < -1:
        raise ValueError(f"found {window}, expected -1 or more")
    return None if window == -1 else window


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"found {type(value).__name__}, expected a number")
    return float(value)


def _whole(value: Any) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError(f"found {number}, expected a whole number")
    return int(number)
