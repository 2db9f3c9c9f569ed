"""What a backend is: the operations of ops.py, which documents them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import mlx.core as mx
import numpy as np

from ..batch import Batch, Place, RecurrentPlace
from ..options import Activation, Delta, HeadNorms, Norm, Routing
from ..shapes import Array
from ..tensor import QTensor

A = TypeVar("A", bound=Array)
T = TypeVar("T")


class Backend(Protocol[A]):
    """A module with these functions. A is the array that holds its activations: mx.array or np.ndarray.

    Tokens, biases and frequencies are mx.arrays on every backend.
    """

    __name__: str
    LAZY: bool

    def prepare(self, threads: int | None, /) -> None:
        """Get ready for operations. Raises OSError if the backend cannot work on this machine."""

    def place(self, tensors: Sequence[QTensor]) -> None:
        """Bring a model's weights to where operations read them. Raises OSError if there is no room."""

    def wired_limit(self) -> int | None: ...

    def matmul(
        self, x: A, w: QTensor, *, bias: mx.array | None = None, add: A | None = None
    ) -> A: ...

    def matmuls(
        self,
        x: A,
        ws: Sequence[QTensor],
        biases: Sequence[mx.array | None] | None = None,
        *,
        norm: Norm | None = None,
    ) -> list[A]: ...

    def gate_up(
        self,
        x: A,
        gate: QTensor,
        up: QTensor,
        act: Activation,
        *,
        biases: Sequence[mx.array | None] | None = None,
        norm: Norm | None = None,
    ) -> A: ...

    def norm_matmul(self, x: A, w: QTensor, norm: Norm) -> tuple[A, A]: ...

    def rows(self, w: QTensor, ids: mx.array | np.ndarray, scale: float = 1.0) -> A: ...

    def dequantize(self, w: QTensor) -> A: ...

    def allocate(self, shape: tuple[int, ...], bits: int) -> A: ...

    def append(
        self,
        q: A,
        k: A,
        v: A,
        at: Place,
        frequencies: mx.array,
        *,
        interleaved: bool,
        magnitude: float = 1.0,
        norms: HeadNorms | None = None,
    ) -> A: ...

    def attend(
        self, q: A, at: Place, *, scale: float, softcap: float = 0.0, sinks: mx.array | None = None
    ) -> A: ...

    def attend_both_ways(self, q: A, k: A, v: A, lengths: list[int], *, scale: float) -> A: ...

    def short_conv(self, x: A, weight: mx.array, at: RecurrentPlace) -> A: ...

    def gated_delta(self, qkv: A, a: A, b: A, at: RecurrentPlace, delta: Delta) -> A: ...

    def gated_norm(self, x: A, weight: mx.array, eps: float, gate: A) -> A: ...

    def gate(self, x: A, pairs: A) -> A: ...

    def rms_norm(self, x: A, weight: mx.array, eps: float, *, add: A | None = None) -> A: ...

    def gelu(self, x: A) -> A: ...

    def softcap(self, x: A, cap: float) -> A: ...

    def choose(self, logits: A) -> tuple[A, A]: ...

    def mask_logits(self, logits: A, bits: A) -> A: ...

    def route(
        self, logits: A, routing: Routing, *, bias: mx.array | None = None
    ) -> tuple[A, A]: ...

    def gather_matmul(self, x: A, w: QTensor, ids: A, *, bias: mx.array | None = None) -> A: ...

    def gather_gate_up(self, x: A, gate: QTensor, up: QTensor, ids: A, act: Activation) -> A: ...

    def gather_down(self, x: A, w: QTensor, ids: A, weights: A, *, add: A | None = None) -> A: ...

    def sigmoid_gate(self, x: A, gate: A, *, add: A | None = None) -> A: ...

    def to_mlx(self, x: A) -> mx.array: ...

    def repeated(self, run: Callable[[Batch], T]) -> Callable[[Batch], T]: ...
