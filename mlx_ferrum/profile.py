"""Time per stage of a token. MLX is lazy, so a stage is timed by evaluating what goes in, then what comes out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

F = TypeVar("F", bound=Callable[..., Any])
_active: Profile | None = None


class Profile:
    """While entered, calls marked with `stage` add their seconds to `stages`. Stages do not overlap.

    Evaluating between stages costs some speed, so the sum is a little more than an unprofiled run takes.
    """

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    def __enter__(self) -> Profile:
        global _active
        if _active is not None:
            raise RuntimeError("a Profile is active already")
        _active = self
        return self

    def __exit__(self, *exc: object) -> None:
        global _active
        _active = None

    def add(self, stage: str, seconds: float) -> None:
        """Count `seconds` under `stage`."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


def is_active() -> bool:
    """Whether a Profile is entered."""
    return _active is not None


def stage(name: str) -> Callable[[F], F]:
    """Mark a module's method as one stage. Costs nothing while no Profile is entered."""

    def mark(call: F) -> F:
        @functools.wraps(call)
        def timed(self: Any, x: mx.array, *args: Any, **named: Any) -> Any:
            profile = _active
            if profile is None:
                return call(self, x, *args, **named)
            mx.eval(x)
            start = time.perf_counter()
            out = call(self, x, *args, **named)
            mx.eval(out)
            profile.add(name, time.perf_counter() - start)
            return out

        return timed  # type: ignore[return-value]

    return mark
