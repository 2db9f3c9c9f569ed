"""From a name to a model and its tokenizer. Weights stay in the mapped file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import blocks, catalog, gguf, models
from .models.base import LanguageModel, Weights
from .tensor import QTensor
from .tokenizer import Tokenizer

SAMPLE = 64  # bytes of each tensor that go into the fingerprint


def load(name: str | Path = catalog.DEFAULT) -> tuple[LanguageModel, Tokenizer]:
    """Open a model.

    name: a GGUF file (any part of a split one), a folder, hf:owner/repo[:file], or a catalog name
    Raises ValueError for a file that is not sound, NotImplementedError for an architecture, block
    type or tokenizer that is not supported, OSError if it cannot be had.
    """
    file = gguf.read(catalog.resolve(name))
    try:
        return _model(file), Tokenizer.from_metadata(file.metadata)
    except NotImplementedError as error:
        raise NotImplementedError(f"{file.path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _model(file: gguf.GGUF) -> LanguageModel:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("metadata key 'general.architecture' is missing or not a string")
    module = models.find(architecture)
    args = module.ModelArgs.from_metadata(file.metadata, architecture)
    weights = Weights({name: _tensor(file, name) for name in file.tensors})
    model: LanguageModel = module.Model(args, weights)
    weights.check_all_used()
    model.fingerprint, model.check_file = _fingerprint(file), file.check
    return model


def _tensor(file: gguf.GGUF, name: str) -> QTensor:
    info = file.tensors[name]
    try:
        block = blocks.by_name(info.type)
    except NotImplementedError as error:
        raise NotImplementedError(f"tensor {name!r}: {error}") from None
    return QTensor(block, info.shape, file.parts[info.part], info.offset)


def _fingerprint(file: gguf.GGUF) -> str:
    """Of names, types, shapes and some bytes of every tensor: tells fine-tunes apart without reading the file."""
    digest = hashlib.sha256()
    for name, info in file.tensors.items():
        digest.update(f"{name} {info.type} {info.shape}\n".encode())
        middle = info.offset + info.nbytes // 2
        digest.update(file.parts[info.part][middle : middle + SAMPLE].tobytes())
    return digest.hexdigest()
