"""Count what a GPU would be asked to launch: our kernels, and the operations of MLX between them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from mlx_ferrum import launch

# Primitives that only say how memory is to be seen; a reshape may also copy, which takes memory.
VIEWS = {
    "Broadcast",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unflatten",
}
SEVERAL = {"DynamicSliceUpdate": 2}  # of which the first finds the place
_LABEL = re.compile(r'\[label ="([^"]*)"')


@dataclass
class Launches:
    """Stands in for the GPU: `names` are the launches, in their order. Results are zeros, evaluated at once.

    What MLX has to do for the arguments of a launch is seen in their graph; what has no name there, that
    memory is copied, by the memory that it takes.
    """

    names: list[str] = field(default_factory=list)

    def __call__(self, kernel: launch.Kernel, call: launch.Launch) -> list[mx.array]:
        """A runner for launch.use_runner."""
        self.settle(call.arrays)
        self.names += ["contiguous copy" for x in call.arrays if not _is_contiguous(x)]
        self.names.append(kernel.name)
        shaped = zip(call.output_shapes, call.output_dtypes, strict=True)
        return [_zeros(shape, dtype) for shape, dtype in shaped]

    def rms_norm(self, x: mx.array, weight: mx.array | None, _: float) -> mx.array:
        """In the place of mx.fast.rms_norm."""
        self.settle([x])
        self.names.append("rms_norm")
        return _zeros(x.shape, x.dtype)

    def settle(self, arrays: Sequence[mx.array]) -> None:
        """Note what MLX does for these arrays, and do it."""
        for name in _primitives(arrays):
            self.names += [name] * SEVERAL.get(name, name not in VIEWS)
        views_only = not {*_primitives(arrays)} - VIEWS - {"SliceUpdate"}
        before = mx.get_active_memory()
        mx.eval(*arrays)
        if views_only and mx.get_active_memory() > before:
            self.names.append("copy")


class Zeros:
    """A runner that costs next to nothing: one array of zeros for each shape and type."""

    def __init__(self) -> None:
        self._kept: dict[Any, list[mx.array]] = {}

    def __call__(self, _: launch.Kernel, call: launch.Launch) -> list[mx.array]:
        key = (*map(tuple, call.output_shapes), *call.output_dtypes)
        found = self._kept.get(key)
        if found is None:
            pairs = zip(call.output_shapes, call.output_dtypes, strict=True)
            found = self._kept[key] = [mx.zeros(shape, dtype) for shape, dtype in pairs]
            mx.eval(found)
        return found


@contextmanager
def counting(made: Launches | None = None) -> Iterator[Launches]:
    """Within, nothing is computed, and launches are noted, in `made` if it is given."""
    made = Launches() if made is None else made
    norm = mock.patch("mlx.core.fast.rms_norm", made.rms_norm)
    with launch.use_runner(made), norm:
        yield made


def _primitives(arrays: Sequence[mx.array]) -> list[str]:
    """Of the graph of what is not evaluated yet."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return _LABEL.findall(text.getvalue())


def _zeros(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    out = mx.zeros(shape, dtype)
    mx.eval(out)
    return out


def _is_contiguous(x: mx.array) -> bool:
    return bool(np.asarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x).flags.c_contiguous)
