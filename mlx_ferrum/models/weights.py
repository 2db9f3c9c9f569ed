"""A file's tensors by their GGUF names, each checked by shape when a model takes it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from .. import ops
from ..nn import QEmbedding, QLinear, RMSNorm
from ..notice import warn
from ..tensor import QTensor

# Ends of names: what generation does without (scales for activations in NVFP4, a head for classes), and factors of
# whole weights, which NVFP4 has.
UNUSED = (".input_scale", "cls.output.weight")
SCALE = ".scale"


class Weights:
    """The tensors of a file under a common prefix, each checked by shape when it is taken."""

    def __init__(
        self, tensors: Mapping[str, QTensor], prefix: str = "", left: set[str] | None = None
    ) -> None:
        self.tensors, self.prefix = tensors, prefix
        self.left = set(tensors) if left is None else left

    def layer(self, i: int) -> Weights:
        """The tensors of block i."""
        return Weights(self.tensors, f"blk.{i}.", self.left)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def skip_layers(self, first: int) -> None:
        """Leave out blocks from `first` on, which predict further tokens; says so if there are any."""
        later = [name for name in self.left if _block(name) >= first]
        if later:
            warn(f"ignored: layers that predict further tokens ({len(later)} tensors)")
        self.left.difference_update(later)

    def tensor(self, name: str, *shape: int) -> QTensor:
        """A tensor by name; files may write axes of 1 before the others, or leave them out.

        Raises ValueError if it is missing or shaped otherwise.
        """
        full = self.prefix + name
        if full not in self.tensors:
            raise ValueError(f"tensor {full!r} is missing")
        found = self.tensors[full]
        if without_ones(found.shape) != without_ones(shape):
            raise ValueError(f"tensor {full!r}: expected shape {shape}, found {found.shape}")
        self.left.discard(full)
        return found if found.shape == shape else found.reshaped(*shape)

    def vector(self, name: str, size: int) -> mx.array:
        """A small tensor, (size,) float32."""
        return mx.array(ops.dequantize(self.tensor(name, size)))

    def embedding(self, name: str, rows: int, k: int, scale: float = 1.0) -> QEmbedding:
        """`NAME.weight` (rows, k) as a table of rows, each times `scale`."""
        return QEmbedding(self.tensor(f"{name}.weight", rows, k), scale)

    def bias(self, name: str, rows: int) -> mx.array | None:
        """`NAME.bias` (rows,) where the file has it."""
        return self.vector(f"{name}.bias", rows) if f"{name}.bias" in self else None

    def linear(self, name: str, rows: int, k: int) -> QLinear:
        """`NAME.weight` (rows, k), with `NAME.bias` where the file has one."""
        return QLinear(self.tensor(f"{name}.weight", rows, k), self.bias(name, rows))

    def linears(self, fused: str, k: int, parts: Mapping[str, int]) -> list[QLinear]:
        """A linear for each of `parts`, name to rows, from tensors of their own or from one with the rows of all.

        `FUSED.weight` (rows, k) and `FUSED.bias` (rows,) hold the parts one after the other; it may have the name of a
        part, and is then told by its rows. A fused weight may come with biases of the parts.
        """
        total = sum(parts.values())
        first, whole = (
            f"{next(iter(parts))}.weight",
            self.tensors.get(f"{self.prefix}{fused}.weight"),
        )
        if first in self or whole is None or (fused in parts and whole.shape[0] != total):
            return [self.linear(name, rows, k) for name, rows in parts.items()]
        weight, biases = self.tensor(f"{fused}.weight", total, k), self.bias(fused, total)
        linears, start = [], 0
        for name, rows in parts.items():
            stop = start + rows
            bias = self.bias(name, rows) if biases is None else biases[start:stop]
            linears.append(QLinear(weight.part(start, stop), bias))
            start = stop
        return linears

    def norm(self, name: str, size: int, eps: float) -> RMSNorm:
        """`NAME.weight` (size,) as an RMS norm."""
        return RMSNorm(self.vector(f"{name}.weight", size), eps)

    def rope_factors(self, pairs: int) -> np.ndarray | None:
        """`rope_freqs.weight`, (pairs,) divisors of the rotary frequencies, where the file has it.

        Raises ValueError unless all are positive, finite numbers.
        """
        name = "rope_freqs.weight"
        if name not in self:
            return None
        factors = np.asarray(self.vector(name, pairs)).astype(np.float64)
        wrong = factors[~(np.isfinite(factors) & (factors > 0))]
        if wrong.size:
            raise ValueError(f"tensor {name!r}: expected positive numbers, found {wrong[0]}")
        return factors

    def check_all_used(self) -> None:
        """Raises ValueError if the file has tensors that the model did not take: they would change what it says.

        Raises NotImplementedError for scales of weights.
        """
        unused = {name for name in self.left if name.endswith(UNUSED)}
        if unused:
            warn(f"ignored: {', '.join(sorted(unused)[:4])} ({len(unused)} tensors in all)")
        self.left -= unused
        scales = sorted(name for name in self.left if name.endswith(SCALE))
        if scales:
            raise NotImplementedError(
                f"tensor {scales[0]!r}: a scale of a whole weight is not supported"
            )
        if self.left:
            names = sorted(self.left)
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            raise ValueError(f"{len(names)} tensors that this architecture does not know: {shown}")


def _block(name: str) -> int:
    """The number of the block that a tensor is of, -1 for none."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of 1 before the first larger one; the last axis stays."""
    return tuple(itertools.dropwhile(lambda n: n == 1, shape[:-1])) + shape[-1:]
