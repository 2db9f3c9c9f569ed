"""Split models: which tensors go into which file, and the keys that say so. Names are llama.cpp's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf

from .output import ALIGNMENT, File, Planned, Value
from .source import SPLIT

PADDING = 32  # tensors count with the bytes up to the next multiple, as llama.cpp counts them
MAX_PARTS = 65_535


def part_path(prefix: Path, i: int, count: int) -> Path:
    """PREFIX-00001-of-00003.gguf for i = 0 of 3."""
    return prefix.with_name(f"{prefix.name}-{i + 1:05}-of-{count:05}.gguf")


def by_count(tensors: Sequence[Planned], most: int) -> list[list[Planned]]:
    """At most `most` tensors in each."""
    return [list(tensors[i : i + most]) for i in range(0, len(tensors), most)]


def by_size(tensors: Sequence[Planned], most: int) -> list[list[Planned]]:
    """At most `most` bytes of tensors in each, in order. Raises ValueError for a larger tensor."""
    groups: list[list[Planned]] = []
    used = most
    for tensor in tensors:
        nbytes = -(-tensor.nbytes // PADDING) * PADDING
        if nbytes > most:
            raise ValueError(
                f"tensor {tensor.name!r}: {nbytes} bytes, expected at most {most} in a part"
            )
        if used + nbytes > most:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += nbytes
    return groups


def files(
    prefix: Path, metadata: Mapping[str, Value], groups: Sequence[Sequence[Planned]]
) -> list[File]:
    """The files of a split model. The first one has the metadata. Raises ValueError for too many or none."""
    count = len(groups)
    if not 0 < count <= MAX_PARTS:
        raise ValueError(f"{count} parts: expected 1 to {MAX_PARTS}")
    total, kind = sum(map(len, groups)), gguf.GGUFValueType
    kept = {key: value for key, value in metadata.items() if key not in SPLIT}
    made = []
    for i, tensors in enumerate(groups):
        own = kept if i == 0 else {k: v for k, v in kept.items() if k == ALIGNMENT}
        split = {
            "split.no": Value(i, kind.UINT16),
            "split.tensors.count": Value(total, kind.INT32),
            "split.count": Value(count, kind.UINT16),
        }
        named = {**own, **split}
        made.append(File(part_path(prefix, i, count), named, tensors))
    return made
