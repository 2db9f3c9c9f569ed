"""A GGUF model to read from: its metadata with types, and its tensors as they are copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlx_ferrum import catalog, gguf, packed
from mlx_ferrum.blocks import TYPES, BlockType

from .output import Planned, Value
from .values import unpack_kind

CHUNK_BYTES = 32 << 20  # read from a file at a time
SPLIT = ("split.no", "split.count", "split.tensors.count")
_TYPES = {block.name: block for block in TYPES.values()}


def read(name: str | Path) -> gguf.GGUF:
    """The model that `name` means: a GGUF file, any part of a split one, a folder, hf:owner/repo, a catalog name.

    Raises ValueError, FileNotFoundError or ConnectionError as catalog.resolve and gguf.read do.
    """
    return gguf.read(catalog.resolve(name))


def read_stacked(name: str | Path) -> gguf.GGUF:
    """As `read`. Raises NotImplementedError for a packed file, whose experts are no stacks."""
    file = read(name)
    if packed.is_packed(file):
        raise NotImplementedError(
            f"{file.path}: is a packed file, expected the one that it was made of"
        )
    return file


def metadata(file: gguf.GGUF) -> dict[str, Value]:
    """All values with their types and stored bytes, without the keys of split models."""
    split = SPLIT if len(file.parts) > 1 else ()
    return {key: _value(file, key) for key in file.metadata if key not in split}


def _value(file: gguf.GGUF, key: str) -> Value:
    raw = file.raw(key)
    return Value(file.metadata[key], *unpack_kind(raw), raw=raw)


def block(info: gguf.TensorInfo) -> type[BlockType]:
    """How a tensor is stored, whether it can be decoded or not."""
    return _TYPES[info.type]


def copied(file: gguf.GGUF, info: gguf.TensorInfo) -> Planned:
    """A tensor as it is, bit for bit."""
    return Planned(
        info.name, block(info), info.shape, info.type, lambda: chunks(file.data(info.name))
    )


def chunks(data: np.ndarray) -> Iterator[np.ndarray]:
    """(nbytes,) in pieces of at most CHUNK_BYTES, views."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
