"""From a name to a model and its tokenizer. Weights stay in the mapped file."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import mlx.core as mx
from mlx import nn

from . import blocks, catalog, gguf, locked, models, notice, ops, packed, streamed
from .models.base import LanguageModel, Weights
from .models.encoder import Encoder
from .options import Delta
from .sample.recommended import recommended
from .tensor import QTensor
from .tokenizer import Tokenizer

SAMPLE = 64  # bytes of each tensor that go into the fingerprint
T = TypeVar("T")
SHOWN = 4  # types of blocks in a model's repr


def load(
    name: str | Path = catalog.DEFAULT,
    *,
    expert_memory: int | Literal["auto"] | None = None,
    reserve: int | None = None,
    mlock: bool = False,
) -> tuple[LanguageModel | Any, Tokenizer]:
    """Open a model: a LanguageModel, or an Encoder such as BERT, which only `embed` can use.

    name: a GGUF file (any part of a split one), a folder, hf:owner/repo[:file], or a catalog name
    expert_memory: bytes of experts that are in memory at a time; the others are read from the file when they are
        chosen. 0: all are mapped. None: as `budget.plan` chooses by the memory that is free, on the cpu and metal
        backends; a line on stderr tells of a model that is not mapped, with "auto" also of one that is
    reserve: bytes of memory that are left for keys and values then; None: of 8,192 tokens
    mlock: lock the mapped weights in memory, so that the system never pages them out; see `locked.lock` for its errors
    Raises ValueError for a file that is not sound, NotImplementedError for an architecture, block
    type or tokenizer that is not supported, OSError if it cannot be had.
    Any thread can use the model. Weights are read from the file when they are first used, with mlock at once; on the
    cuda backend they are copied into the GPU's memory at once, and OSError says so if they do not fit.
    """
    file = gguf.read(catalog.resolve(name))
    tensors = packed.tensors(file)
    try:
        model = _model(file, tensors)
        nbytes = _expert_bytes(file, expert_memory, reserve)
        if nbytes:
            model.streams = streamed.stream(model, file, nbytes)
        tokenizer = Tokenizer.from_metadata(file.metadata)
        held = list(_held(model, QTensor))
        if mlock:
            locked.lock(held, file)
        ops.place(held)
        return model, tokenizer
    except NotImplementedError as error:
        raise NotImplementedError(f"{file.path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _expert_bytes(file: gguf.GGUF, asked: object, reserve: int | None) -> int:
    """Bytes for experts, 0 if they are mapped. asked: as of `load`, which others may call with anything"""
    if isinstance(asked, int) and not isinstance(asked, bool) and asked >= 0:
        return asked
    if asked not in (None, "auto"):
        raise ValueError(f"expert_memory is {asked!r}, expected bytes, 'auto' or None")
    plan = streamed.planned(file, reserve)
    if plan.is_short:
        notice.warn(plan.reason)
    elif plan.nbytes or asked is not None:
        notice.tell(plan.reason)
    return plan.nbytes


def _model(file: gguf.GGUF, tensors: Mapping[str, gguf.TensorInfo]) -> LanguageModel | Encoder:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("metadata key 'general.architecture' is missing or not a string")
    module = models.find(architecture)
    args = module.ModelArgs.from_metadata(file.metadata, architecture)
    weights = Weights({name: _tensor(file, info) for name, info in tensors.items()})
    model: LanguageModel | Encoder = module.Model(args, weights)
    weights.check_all_used()
    model.fingerprint, model.check_file = _fingerprint(file, tensors), file.check
    model.nbytes, model.parameter_count, model.types = measured(tensors.values())
    model.recommended = recommended(file.metadata)
    # lazy arrays belong to the thread that made them: no other one could evaluate them
    mx.eval(list(_held(model, mx.array)))
    return model


def measured(tensors: Iterable[gguf.TensorInfo]) -> tuple[int, int, str]:
    """Bytes and numbers in the tensors, and the types that have a hundredth of the numbers or more, at most SHOWN."""
    nbytes, weights = 0, Counter[str]()
    for info in tensors:
        nbytes += info.nbytes
        weights[info.type] += math.prod(info.shape)
    common = [name for name, n in weights.most_common() if 100 * n >= weights.total()]
    types = " + ".join([*common[:SHOWN], *(["…"] if len(common) > SHOWN else [])])
    return nbytes, weights.total(), types


def _held(value: Any, kind: type[T]) -> Iterator[T]:
    """The arrays that modules hold, parameters or not, as norms, biases and rotary frequencies; or the QTensors."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, nn.Module):
        yield from _held({**vars(value), **value}, kind)
    elif isinstance(value, Delta):
        yield from _held((value.decay, value.dt), kind)
    elif isinstance(value, Mapping):
        yield from _held(tuple(value.values()), kind)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _held(item, kind)


def _tensor(file: gguf.GGUF, info: gguf.TensorInfo) -> QTensor:
    try:
        block = blocks.by_name(info.type)
    except NotImplementedError as error:
        raise NotImplementedError(f"tensor {info.name!r}: {error}") from None
    step = info.step if isinstance(info, packed.Stack) else None
    return QTensor(block, info.shape, file.parts[info.part], info.offset, info.name, step)


def _fingerprint(file: gguf.GGUF, tensors: Mapping[str, gguf.TensorInfo]) -> str:
    """Of names, types, shapes and some bytes of every tensor: tells fine-tunes apart without reading the file."""
    digest = hashlib.sha256()
    for name, info in tensors.items():
        digest.update(f"{name} {info.type} {info.shape}\n".encode())
        middle = info.nbytes // 2
        if isinstance(info, packed.Stack):
            matrix, within = divmod(middle, info.nbytes // info.shape[0])
            middle = matrix * info.step + within
        start = info.offset + middle
        digest.update(file.parts[info.part][start : start + SAMPLE].tobytes())
    return digest.hexdigest()
