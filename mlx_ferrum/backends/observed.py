"""A backend that shows the input of each product to an observer, and otherwise computes as the one it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from ..batch import Batch
from ..options import Activation, Norm
from ..tensor import QTensor

T = TypeVar("T")
Observer = Callable[[mx.array, Sequence[QTensor], mx.array | None], None]


class Observed:
    """See `ops.observed`. Norms that a backend fuses with products are computed before them, as inputs of them."""

    def __init__(self, backend: Any, see: Observer) -> None:
        self._backend, self._see = backend, see

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def matmul(
        self,
        x: mx.array,
        w: QTensor,
        *,
        bias: mx.array | None = None,
        add: mx.array | None = None,
    ) -> mx.array:
        self._see(x, [w], None)
        return self._backend.matmul(x, w, bias=bias, add=add)

    def matmuls(
        self,
        x: mx.array,
        ws: Sequence[QTensor],
        biases: Sequence[mx.array | None] | None = None,
        *,
        norm: Norm | None = None,
    ) -> list[mx.array]:
        x = self._normed(x, norm)
        self._see(x, ws, None)
        return self._backend.matmuls(x, ws, biases)

    def gate_up(
        self,
        x: mx.array,
        gate: QTensor,
        up: QTensor,
        act: Activation,
        *,
        biases: Sequence[mx.array | None] | None = None,
        norm: Norm | None = None,
    ) -> mx.array:
        x = self._normed(x, norm)
        self._see(x, [gate, up], None)
        return self._backend.gate_up(x, gate, up, act, biases=biases)

    def norm_matmul(self, x: mx.array, w: QTensor, norm: Norm) -> tuple[mx.array, mx.array]:
        x = self._normed(x, norm)
        return x, self.matmul(x, w)

    def gather_matmul(
        self, x: mx.array, w: QTensor, ids: mx.array, *, bias: mx.array | None = None
    ) -> mx.array:
        self._see(x, [w], ids)
        return self._backend.gather_matmul(x, w, ids, bias=bias)

    def gather_gate_up(
        self, x: mx.array, gate: QTensor, up: QTensor, ids: mx.array, act: Activation
    ) -> mx.array:
        self._see(x, [gate, up], ids)
        return self._backend.gather_gate_up(x, gate, up, ids, act)

    def gather_down(
        self,
        x: mx.array,
        w: QTensor,
        ids: mx.array,
        weights: mx.array,
        *,
        add: mx.array | None = None,
    ) -> mx.array:
        self._see(x, [w], ids)
        return self._backend.gather_down(x, w, ids, weights, add=add)

    def repeated(self, run: Callable[[Batch], T]) -> Callable[[Batch], T]:
        """Repeats nothing that the observer would miss."""
        return run

    def _normed(self, x: mx.array, norm: Norm | None) -> mx.array:
        return x if norm is None else self._backend.rms_norm(x, *norm)
