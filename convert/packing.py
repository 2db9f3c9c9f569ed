"""Packed files: an expert's gate, up and down side by side, so that it is one stretch of the file to read.

Every tensor begins on a page, as `general.alignment` says; see mlx_ferrum/packed.py for the names. Tensors that are
no experts come first, so that what stays in memory is one stretch, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gguf as gguf_py
import numpy as np

from mlx_ferrum import gguf
from mlx_ferrum.packed import FUSED, PARTS, expert_name, is_packed, stack_name

from . import source
from .output import ALIGNMENT, File, Planned, Value

# Bytes: a page of Apple silicon, four of those of Linux, and whole sectors of any disk.
PAGE = 16384
_STACK = re.compile(r"(blk\.\d+\.)ffn_(?:gate|up|down|gate_up)_exps\.weight")


def plan(model: gguf.GGUF, out: Path) -> File:
    """The packed file of a model.

    Raises ValueError for a model without experts or with an incomplete layer, and for one that is packed already.
    """
    if is_packed(model):
        raise ValueError(f"{model.path}: is packed already")
    layers = dict.fromkeys(m[1] for name in model.tensors if (m := _STACK.fullmatch(name)))
    if not layers:
        raise ValueError(f"{model.path}: has no experts, expected a mixture of experts")
    stacks = {layer: _stacks(model, layer) for layer in layers}
    packed = {stack.info.name for parts in stacks.values() for stack in parts}
    tensors = [source.copied(model, i) for i in model.tensors.values() if i.name not in packed]
    for layer, parts in stacks.items():
        tensors += _experts(model, layer, parts)
    alignment = Value(max(PAGE, model.alignment), gguf_py.GGUFValueType.UINT32)
    return File(out, {**source.metadata(model), ALIGNMENT: alignment}, tensors)


class _Stack(NamedTuple):
    """The matrices of one part, (rows, k) each. first: the row of a matrix in the tensor where they begin"""

    info: gguf.TensorInfo
    first: int
    rows: int


def _stacks(model: gguf.GGUF, layer: str) -> list[_Stack]:
    """The stacks of gate, up and down of a layer, with the same number of experts."""
    fused, found = stack_name(layer, FUSED) in model.tensors, []
    for name in (stack_name(layer, part) for part in PARTS[:2]):
        if fused and name in model.tensors:
            raise ValueError(
                f"{model.path}: tensor {name!r}: found beside gate and up in one stack"
            )
    for part in PARTS if not fused else (FUSED, PARTS[2]):
        name = stack_name(layer, part)
        if name not in model.tensors:
            raise ValueError(
                f"{model.path}: tensor {name!r} is missing: a layer's gate, up and down are packed together"
            )
        found.append(model.tensors[name])
    count = found[0].shape[0]
    for info in found:
        if len(info.shape) != 3 or info.shape[0] != count:
            raise ValueError(
                f"{model.path}: tensor {info.name!r}: expected a stack of {count} matrices, found {info.shape}"
            )
    if not fused:
        return [_Stack(info, 0, info.shape[1]) for info in found]
    both, down = found
    rows, odd = divmod(both.shape[1], 2)
    if odd:
        raise ValueError(
            f"{model.path}: tensor {both.name!r}: expected gate and up of as many rows, found {both.shape}"
        )
    return [_Stack(both, 0, rows), _Stack(both, rows, rows), _Stack(down, 0, down.shape[1])]


def _experts(model: gguf.GGUF, layer: str, stacks: list[_Stack]) -> Iterator[Planned]:
    """The matrices of a layer's experts in the order of the file."""
    for expert in range(stacks[0].info.shape[0]):
        for part, (info, first, rows) in zip(PARTS, stacks, strict=True):
            name, (count, every, k) = expert_name(layer, part, expert), info.shape
            row = info.nbytes // (count * every)
            data = partial(_pieces, model, info, (expert * every + first) * row, rows * row)
            yield Planned(name, source.block(info), (rows, k), info.type, data)


def _pieces(
    model: gguf.GGUF, info: gguf.TensorInfo, start: int, nbytes: int
) -> Iterator[np.ndarray]:
    return source.chunks(model.data(info.name)[start : start + nbytes])
