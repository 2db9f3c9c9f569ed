"""Importance of columns, measured: sums of the squares of what comes into each matrix while a model reads a text.

Written in llama.cpp's GGUF format, which `importance` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf as gguf_py
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.blocks import F32
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tensor import QTensor

from . import importance
from .output import Planned, Value


@dataclass(frozen=True)
class Sums:
    """Of one tensor, a matrix or a stack of experts.

    squares: (matrices, k) float64, sums over the rows of the input; counts: (matrices,) int64, how many rows
    """

    squares: np.ndarray
    counts: np.ndarray

    @property
    def unused(self) -> list[int]:
        """Matrices that no row reached."""
        return np.flatnonzero(self.counts == 0).tolist()


class Collector:
    """Adds up inputs; `see` is an observer for `ops.observed`. Tensors are told apart by their names."""

    def __init__(self) -> None:
        self.tensors: dict[str, Sums] = {}

    def see(self, x: ops.Array, ws: Sequence[QTensor], ids: ops.Array | None) -> None:
        """Raises ValueError if an input is NaN or infinite, or so large that float32 cannot hold its sum."""
        squares = np.square(np.asarray(ops.to_mlx(x)), dtype=np.float64).reshape(-1, x.shape[-1])
        chosen = np.zeros(len(squares), np.int64) if ids is None else np.asarray(ids).reshape(-1)
        if not len(squares):
            return
        repeats = len(chosen) // len(squares)  # rows that go to several experts
        parts = {
            int(i): squares[np.flatnonzero(chosen == i) // repeats].sum(0)
            for i in np.unique(chosen)
        }
        for name, w in {w.name: w for w in ws}.items():  # parts of one tensor share its name
            found = self._sums(name, 1 if ids is None else w.shape[0], squares.shape[-1])
            for i, part in parts.items():
                found.squares[i] += part
            found.counts[:] += np.bincount(chosen, minlength=found.counts.size)
            if not found.squares.max() <= np.finfo(np.float32).max:
                raise ValueError(
                    f"tensor {name!r}: expected finite inputs, found a sum of squares of "
                    f"{found.squares.max():g}"
                )

    def _sums(self, name: str, matrices: int, k: int) -> Sums:
        assert name, "load names every tensor"
        if name not in self.tensors:
            self.tensors[name] = Sums(np.zeros((matrices, k)), np.zeros(matrices, np.int64))
        return self.tensors[name]


def collect(
    model: LanguageModel, chunks: Iterable[Sequence[int]], *, head: bool = False
) -> dict[str, Sums]:
    """What comes into each matrix of the layers while `model` reads the chunks, each from an empty cache.

    head: also what comes into the output matrix, which are the token embeddings where the model ties them
    Raises ValueError for inputs that are not finite, and if the file changed.
    """
    collector = Collector()
    for tokens in chunks:
        with ops.observed(collector.see):
            hidden = model.body(model.make_cache().batch(np.array([tokens])))
        if head:
            collector.see(hidden, [model.output.weight], None)
        if model.check_file is not None:
            model.check_file()
    return collector.tensors


def planned(tensors: Mapping[str, Sums]) -> list[Planned]:
    """The tensors of a file, in the order of their names: NAME.in_sum2 (matrices, k), NAME.counts (matrices, 1)."""
    made = []
    for name, sums in sorted(tensors.items()):
        made.append(_planned(name + importance.SUMS, sums.squares))
        made.append(_planned(name + importance.COUNTS, sums.counts[:, None]))
    return made


def _planned(name: str, values: np.ndarray) -> Planned:
    def data() -> np.ndarray:
        return np.ascontiguousarray(values, "<f4").view(np.uint8)

    return Planned(name, F32, values.shape, "sums", data)


def metadata(text: Path, count: int, size: int) -> dict[str, Value]:
    """Where the numbers come from: the text's name, and `count` chunks of `size` tokens."""
    kind = gguf_py.GGUFValueType
    return {
        "general.type": Value("imatrix", kind.STRING),
        importance.DATASETS: Value([str(text)], kind.ARRAY, kind.STRING),
        importance.CHUNKS: Value(count, kind.UINT32),
        importance.CHUNK_SIZE: Value(size, kind.UINT32),
    }


def notices(tensors: Mapping[str, Sums]) -> list[str]:
    """A line for each set of experts that no token chose: tensors of a layer that lack the same ones share it."""
    missing: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, sums in tensors.items():
        if sums.unused:
            layer = ".".join(name.split(".")[:2])
            missing.setdefault((layer, tuple(sums.unused)), []).append(name)
    return [
        f"{layer}: no token chose {len(experts)} of the {tensors[names[0]].counts.size} experts "
        f"({', '.join(map(str, experts))}); all their columns will count alike"
        for (layer, experts), names in missing.items()
    ]
