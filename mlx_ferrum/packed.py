"""Packed files, as `ferrum-convert pack` writes them: an expert's gate, up and down lie side by side.

The matrices of expert E in layer N are the tensors `blk.N.ffn_gate.E.weight`, `blk.N.ffn_up.E.weight` and
`blk.N.ffn_down.E.weight`, names that files had before stacks. Models get the same stacks as from other files: the
matrices of one part have the same type and shape, lie in one file, and are the same number of bytes apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .gguf import GGUF, TensorInfo
from .gguf.header import quoted
from .gguf.values import failure

PARTS = ("gate", "up", "down")
FUSED = "gate_up"  # the first two in one stack: each expert's rows of gate, then those of up
_EXPERT = re.compile(r"(blk\.\d{1,6}\.)ffn_(gate|up|down)\.(0|[1-9]\d{0,5})\.weight")
_Experts = dict[int, TensorInfo]  # by number


@dataclass(frozen=True)
class Stack(TensorInfo):
    """A stack (experts, rows, k) whose matrices do not follow each other.

    offset: of the first matrix; nbytes: of all matrices; step: bytes from a matrix to the next one
    """

    step: int


def expert_name(layer: str, part: str, expert: int) -> str:
    """The name of an expert's matrix. layer: what names of the layer begin with, "blk.N."; part: one of PARTS."""
    return f"{layer}ffn_{part}.{expert}.weight"


def stack_name(layer: str, part: str) -> str:
    """The name of a stack; arguments as of `expert_name`, part may be FUSED."""
    return f"{layer}ffn_{part}_exps.weight"


def is_packed(file: GGUF) -> bool:
    """Whether experts have tensors of their own."""
    return any(_EXPERT.fullmatch(name) for name in file.tensors)


def tensors(file: GGUF) -> dict[str, TensorInfo]:
    """The tensors of a model by name, those of experts as stacks; the same as in the file if it is not packed.

    Raises ValueError, naming the tensor, for an expert that is missing or unlike the others.
    """
    found: dict[str, TensorInfo | None] = {}
    layers: dict[str, dict[str, _Experts]] = {}
    for name, info in file.tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            found[name] = info
            continue
        layer, part, expert = match.groups()
        parts = layers.setdefault(layer, {part: {} for part in PARTS})
        parts[part][int(expert)] = info
        found.setdefault(stack_name(layer, part), None)
    for layer, parts in layers.items():
        _check(file, layer, parts)
        for part, experts in parts.items():
            name = stack_name(layer, part)
            if found[name] is not None:
                raise failure(
                    file.path, f"tensor {quoted(name)}", "a stack", "none beside single experts"
                )
            found[name] = _stack(file, name, experts)
    return {name: info for name, info in found.items() if info is not None}


def _count(file: GGUF, parts: Mapping[str, _Experts]) -> int:
    """How many experts a layer has: what the metadata says, else as many as there are numbers."""
    said = file.metadata.get(f"{file.metadata.get('general.architecture')}.expert_count")
    if type(said) is int and said > 0:
        return said
    return 1 + max(number for experts in parts.values() for number in experts)


def _check(file: GGUF, layer: str, parts: Mapping[str, _Experts]) -> None:
    """Raises ValueError unless each part has all experts, of one type and shape, in one file."""
    count = _count(file, parts)
    for part, experts in parts.items():
        missing = next((i for i in range(count) if i not in experts), None)
        if missing is not None:
            name = expert_name(layer, part, missing)
            raise failure(file.path, f"tensor {quoted(name)}", "none", f"experts 0 to {count - 1}")
        if max(experts) >= count:
            name = expert_name(layer, part, max(experts))
            raise failure(
                file.path, f"tensor {quoted(name)}", "one more", f"experts 0 to {count - 1}"
            )
    for experts in parts.values():
        for info in experts.values():
            _check_alike(file, info, experts[0])


def _check_alike(file: GGUF, info: TensorInfo, first: TensorInfo) -> None:
    for what, found, expected in (
        ("type", info.type, first.type),
        ("shape", info.shape, first.shape),
        ("file", info.part + 1, first.part + 1),
    ):
        if found != expected:
            field = f"tensor {quoted(info.name)}: {what}"
            raise failure(file.path, field, f"{found}", f"{expected}, as {quoted(first.name)} is")


def _stack(file: GGUF, name: str, experts: _Experts) -> Stack:
    """Raises ValueError unless the experts are the same number of bytes apart, in order."""
    first, count = experts[0], len(experts)
    step = experts[1].offset - first.offset if count > 1 else first.nbytes
    for i in range(count):
        offset = first.offset + i * abs(step)
        if experts[i].offset != offset:
            field = f"tensor {quoted(experts[i].name)}: data"
            expected = f"{offset}: experts are the same number of bytes apart"
            raise failure(file.path, field, f"byte {experts[i].offset}", expected)
    shape, nbytes = (count, *first.shape), count * first.nbytes
    return Stack(name, first.type, shape, first.part, first.offset, nbytes, step)
