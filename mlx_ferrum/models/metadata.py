"""The metadata of one architecture, checked as it is read: a file is not to be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24  # no real model has a larger dimension, context or vocabulary


class Metadata:
    """The keys of one architecture, `{architecture}.NAME`, each checked for type and range."""

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        self.values, self.architecture = values, architecture

    def __contains__(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.values

    def raw(self, name: str) -> Any:
        """The value of a key as the file has it, None if it is missing."""
        return self.values.get(f"{self.architecture}.{name}")

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of a key. Raises ValueError if it has another type, or is missing without a default."""
        key = f"{self.architecture}.{name}"
        value = self.values.get(key, default)
        if value is None:
            raise ValueError(f"metadata key {key!r} is missing")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{key}: expected {kind.__name__}, found {type(value).__name__}")
        return value

    def size(
        self, name: str, default: int | None = None, most: int = MAX_SIZE, *, least: int = 1
    ) -> int:
        """A whole number from `least` to `most`."""
        value: int = self.get(name, int, default)
        if not least <= value <= most:
            key = f"{self.architecture}.{name}"
            raise ValueError(f"{key}: expected {least} to {most}, found {value}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.get(name, float, default)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"{self.architecture}.{name}: expected a positive number, found {value}"
            )
        return value
