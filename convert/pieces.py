"""Pieces of a checkpoint: rows of stored tensors that make up a tensor of a GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mlx_ferrum.blocks import Block

from .checkpoint import Stored

PART = 1 << 26  # weights that are converted at a time, unless a tensor's rows change places
_EXPERT = re.compile(r"(?P<stack>.*\.experts)\.(?P<number>\d+)\.(?P<name>.+)$")
_FUSED = re.compile(r"(?P<stack>.*\.experts)\.gate_up_proj(\.weight)?$")


@dataclass(frozen=True)
class Piece:
    """A piece of a tensor. stacked: one matrix of a stack; half: 0 or 1, of the second axis of a stack, or all.

    packed: read as bytes of the block type that the piece is stored in
    """

    stored: Stored
    stacked: bool = False
    half: int | None = None
    packed: bool = False

    @property
    def name(self) -> str:
        """In the checkpoint."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the piece, with one axis more if it is stacked."""
        shape = self.stored.shape
        if self.half is not None:
            return (shape[0], shape[1] // 2, *shape[2:])
        return (1, *shape) if self.stacked else shape

    def read(self, start: int, stop: int) -> np.ndarray:
        """Entries start to stop of the first axis, float32 or rows of bytes."""
        read = self.stored.packed if self.packed else self.stored.read
        if self.stacked:
            return read(0, self.stored.rows)[None]
        x = read(start, stop)
        if self.half is None:
            return x
        middle = x.shape[1] // 2
        return x[:, middle:] if self.half else x[:, :middle]

    def parts(self, whole: bool) -> Iterator[Callable[[], np.ndarray]]:
        """Read the piece in order, at most PART weights each, or all at once if `whole`."""
        rows = self.shape[0] if self.shape else 1
        step = rows if whole else max(1, PART // max(1, math.prod(self.shape[1:])))
        for start in range(0, rows, step):
            yield partial(self.read, start, min(rows, start + step))


def gathered(
    tensors: Iterable[tuple[str, Stored]], experts: int
) -> Iterator[tuple[str, list[Piece]]]:
    """Names with the pieces that make up each tensor: experts are stacked, gates and what they multiply told apart.

    tensors: with their names for TensorNameMap
    Raises ValueError for a stack that has not all `experts`, or is of a wrong shape.
    """
    stacks: dict[str, dict[int, Stored]] = {}
    for name, stored in tensors:
        expert, fused = _EXPERT.match(name), _FUSED.match(name)
        if expert is not None:
            stack = stacks.setdefault(f"{expert['stack']}.{expert['name']}", {})
            stack[int(expert["number"])] = stored
        elif fused is not None:
            yield from _halves(fused["stack"], stored)
        else:
            bare = ".experts." in name and "." not in name.rsplit(".experts.")[1]
            yield f"{name}.weight" if bare else name, [Piece(stored)]
    for name, stack in stacks.items():
        missing = [n for n in range(experts) if n not in stack]
        if missing or len(stack) != experts:
            raise ValueError(
                f"tensor {name!r}: expected experts 0 to {experts - 1}, found {len(stack)}"
                + (f", without {missing[0]}" if missing else "")
            )
        yield name, [Piece(stack[n], stacked=True) for n in range(experts)]


def _halves(stack: str, stored: Stored) -> Iterator[tuple[str, list[Piece]]]:
    """The gates of all experts, and what they are multiplied by, from one tensor (experts, 2 n, k)."""
    if len(stored.shape) != 3 or stored.shape[1] % 2:
        raise ValueError(
            f"tensor {stored.name!r}: expected (experts, 2 n, k), found {stored.shape}"
        )
    for half, name in enumerate(("gate_proj", "up_proj")):
        yield f"{stack}.{name}.weight", [Piece(stored, half=half)]


@dataclass(frozen=True)
class Picked(Stored):
    """Rows of another tensor, in an order of their own. places: which row of `whole` each one is"""

    whole: Stored | None = None
    places: tuple[int, ...] = ()

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        assert self.whole is not None
        return self._taken(self.whole.read, start, self.rows if stop is None else stop)

    @property
    def repacks(self) -> type[Block] | None:
        return None if self.whole is None else self.whole.repacks

    def packed(self, start: int, stop: int) -> np.ndarray:
        assert self.whole is not None
        return self._taken(self.whole.packed, start, stop)

    def _taken(self, read: Callable[[int, int], np.ndarray], start: int, stop: int) -> np.ndarray:
        """Rows start to stop, of which all between the first and the last in the tensor are read."""
        places = np.array(self.places[start:stop])
        low = int(places.min())
        return np.ascontiguousarray(read(low, int(places.max()) + 1)[places - low])


def picked(whole: Stored, places: Sequence[int]) -> Picked:
    """The rows of `whole` at `places`."""
    shape = (len(places), *whole.shape[1:])
    return Picked(
        whole.name, whole.file, whole.dtype, shape, whole.offset, whole=whole, places=tuple(places)
    )
