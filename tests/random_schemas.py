"""JSON schemas with recursion, unions, patterns, enums and nested arrays; every value of them is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

PATTERNS = ["^[a-f]{2,4}$", "^(red|green|blue)-[0-9]{1,2}$", "^x?y+z{1,3}$", "^[A-Z][a-z]{0,5}$"]
WORDS = ["a", "two words", 'q"uote', "é", "日本", "back\\slash", ""]


class Schemas:
    """Makes them from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def make(self) -> dict[str, Any]:
        """An object, which may use definitions that use themselves."""
        tree = self.object(1) | {"additionalProperties": False}
        tree["properties"]["next"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
        node = {
            "type": "object",
            "properties": {"at": self.value(0), "next": tree["properties"]["next"]},
            "required": ["at"],
            "additionalProperties": False,
        }
        return tree | {"$defs": {"node": node}}

    def value(self, depth: int) -> dict[str, Any]:
        kinds: list[Callable[[int], dict[str, Any]]]
        kinds = [self.number, self.string, self.pattern, self.enum, self.constant]
        if depth:
            kinds += [self.array, self.object, self.union] * 2
        return kinds[self.rng.integers(len(kinds))](depth - 1)

    def number(self, depth: int) -> dict[str, Any]:
        low = int(self.rng.integers(-50, 50))
        kind = "integer" if self.rng.random() < 0.7 else "number"
        return {"type": kind, "minimum": low, "maximum": low + int(self.rng.integers(1, 500))}

    def string(self, depth: int) -> dict[str, Any]:
        return {"type": "string", "maxLength": int(self.rng.integers(1, 8))}

    def pattern(self, depth: int) -> dict[str, Any]:
        return {"type": "string", "pattern": str(self.rng.choice(PATTERNS))}

    def enum(self, depth: int) -> dict[str, Any]:
        words = list(self.rng.choice(WORDS, 3, replace=False))
        return {"enum": [*map(str, words), int(self.rng.integers(100)), None]}

    def constant(self, depth: int) -> dict[str, Any]:
        return {"const": {"a": [1, {"b": str(self.rng.choice(WORDS))}], "c": False}}

    def array(self, depth: int) -> dict[str, Any]:
        low = int(self.rng.integers(0, 3))
        items = self.value(depth)
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + 1}

    def object(self, depth: int) -> dict[str, Any]:
        names = [f"key_{i}" for i in range(self.rng.integers(1, 4))]
        required = [name for name in names if self.rng.random() < 0.7]
        properties = {name: self.value(depth) for name in names}
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    def union(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.value(depth) for _ in range(self.rng.integers(2, 4))]}
