"""What recipes need to know of a model, from its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .recipes import ModelFacts


def read(metadata: Mapping[str, object], names: Sequence[str]) -> ModelFacts:
    """From a GGUF file's metadata and the names of its tensors. Raises ValueError without an architecture or layers."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        found = "nothing" if architecture is None else type(architecture).__name__
        raise ValueError(f"metadata 'general.architecture': expected text, found {found}")
    heads = _number(metadata, f"{architecture}.attention.head_count", 0)
    return ModelFacts(
        architecture,
        layers=_number(metadata, f"{architecture}.block_count"),
        experts=_number(metadata, f"{architecture}.expert_count", 0),
        heads=heads,
        kv_heads=_number(metadata, f"{architecture}.attention.head_count_kv", heads),
        tied="output.weight" not in names,
    )


def _number(metadata: Mapping[str, object], key: str, default: int | None = None) -> int:
    """An integer, or the first one of an array of one for each layer."""
    value = metadata.get(key, default)
    first = value.flat[0] if isinstance(value, np.ndarray) and value.size else value
    if isinstance(first, bool) or not isinstance(first, int | np.integer):
        found = "nothing" if value is None else repr(value)[:80]
        raise ValueError(f"metadata {key!r}: expected a number, found {found}")
    return int(first)
