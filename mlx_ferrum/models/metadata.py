"""The metadata of one architecture, checked as it is read: a file is not to be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..notice import warn

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24  # no real model has a larger dimension, context or vocabulary
# Keys that may hold one value for each layer.
PER_LAYER = {
    "attention.head_count",
    "attention.head_count_kv",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
}
# Options of other architectures, and the values with which they change nothing. llama.cpp ignores them, too, where the
# architecture does not have them.
FOREIGN: dict[str, tuple[float, ...]] = {
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.yarn_attn_factor": (1, -1),
    "rope.scaling.yarn_ext_factor": (1, -1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "router_logit_softcapping": (0,),
}


class Metadata:
    """The keys of one architecture, `{architecture}.NAME`, each checked for type and range."""

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        self.values, self.architecture = values, architecture
        self._read: set[str] = set()
        self._without: dict[str, Sequence[bool]] = {}

    def __contains__(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.values

    def without(self, name: str, layers: Sequence[bool]) -> None:
        """Say which layers do not have what a key counts: where it has a value for each layer, theirs may be 0."""
        self._without[name] = layers

    def raw(self, name: str) -> Any:
        """The value of a key as the file has it, None if it is missing."""
        return self.values.get(f"{self.architecture}.{name}")

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of a key; of one that has a value for each layer, the one that all layers share.

        Raises ValueError if it has another type, or is missing without a default, NotImplementedError if layers differ.
        """
        key = f"{self.architecture}.{name}"
        self._read.add(name)
        value = self.values.get(key, default)
        if value is None:
            raise ValueError(f"metadata key {key!r} is missing")
        if name in PER_LAYER and isinstance(value, np.ndarray):
            value = self._shared(name, value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{key}: expected {kind.__name__}, found {type(value).__name__}")
        return value

    def _shared(self, name: str, values: np.ndarray) -> Any:
        """The value of all layers, from an array with one value for each."""
        key = f"{self.architecture}.{name}"
        layers = self.size("block_count", most=MAX_LAYERS)
        if values.shape != (layers,):
            found = "x".join(map(str, values.shape))
            raise ValueError(f"{key}: expected {layers} values, one a layer, found {found}")
        if name in self._without:
            has = np.flatnonzero(~np.array(self._without[name]))
            wrong = has[values[has] == 0]
            if wrong.size:
                raise ValueError(
                    f"{key}: 0 in layer {wrong[0]}, expected 1 at least: it has attention"
                )
            values = values[has]
        distinct = np.unique(values).tolist()
        if 0 in distinct[:1] and len(distinct) > 1:
            raise NotImplementedError(
                f"{key}: 0 in layer {int(np.argmin(values))}, a layer without this part is not supported"
            )
        if len(distinct) > 1:
            shown = ", ".join(map(str, distinct[:4])) + (", …" if len(distinct) > 4 else "")
            raise NotImplementedError(
                f"{key}: layers that differ ({shown}) are not supported, expected one value for all"
            )
        return distinct[0]

    def size(
        self,
        name: str,
        default: int | None = None,
        most: int = MAX_SIZE,
        *,
        zero: int | None = None,
    ) -> int:
        """A whole number from 1 to `most`; zero: what 0 stands for, None where it is refused."""
        value: int = self.get(name, int, default)
        if value == 0 and zero is not None:
            return zero
        if not 1 <= value <= most:
            key, least = f"{self.architecture}.{name}", 0 if zero == 0 else 1
            raise ValueError(f"{key}: expected {least} to {most}, found {value}")
        return value

    def positive(
        self, name: str, default: float | None = None, *, zero: float | None = None
    ) -> float:
        """A positive, finite number; zero: what 0 stands for, None where it is refused."""
        value: float = self.get(name, float, default)
        if value == 0 and zero is not None:
            return zero
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"{self.architecture}.{name}: expected a positive number, found {value}"
            )
        return value

    def warn_of_foreign(self) -> None:
        """One line for each option of another architecture that the file sets and nothing has read."""
        for name, neutral in FOREIGN.items():
            value = self.raw(name)
            if value is not None and name not in self._read and value not in neutral:
                warn(f"{self.architecture}.{name}: ignored, the architecture has no such option")
