"""Layers over quantized weights.

Weights are QTensors, so they are no parameters of the module: they stay in the file.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from . import ops
from .profile import stage
from .tensor import QTensor

Observer = Callable[[mx.array], None]


class QLinear(nn.Module):
    """x: (..., k) -> (..., rows), with an optional bias (rows,)."""

    def __init__(self, weight: QTensor, bias: mx.array | None = None) -> None:
        super().__init__()
        self.weight = weight
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array, add: mx.array | None = None) -> mx.array:
        """add: (..., rows), a residual to add to the product."""
        return ops.matmul(x, self.weight, bias=self.get("bias"), add=add)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis: x: (..., d) -> (..., d), weight: (d,)."""

    def __init__(self, weight: mx.array, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def __call__(self, x: mx.array, add: mx.array | None = None) -> mx.array:
        """add: (..., d), a residual to add to the normed x."""
        return ops.rms_norm(x, self.weight, self.eps, add=add)


class FusedLinear(nn.Module):
    """Several linears that share their input, of mixed types, in one launch: x: (..., k) -> one (..., rows) each."""

    def __init__(self, *parts: QLinear) -> None:
        super().__init__()
        self.parts = list(parts)

    def __call__(self, x: mx.array) -> list[mx.array]:
        weights = [part.weight for part in self.parts]
        return ops.matmuls(x, weights, [part.get("bias") for part in self.parts])


class QEmbedding(nn.Module):
    """ids: (...) -> (..., k) float32, times `scale`. `as_linear` is the tied output head."""

    def __init__(self, weight: QTensor, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale

    def __call__(self, ids: mx.array) -> mx.array:
        return ops.rows(self.weight, ids, self.scale)

    def as_linear(self, x: mx.array) -> mx.array:
        """x: (..., k) -> (..., rows)"""
        return ops.matmul(x, self.weight)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) + add: x and add: (..., k) -> (..., k). Gate and up have no bias."""

    def __init__(
        self, gate: QTensor, up: QTensor, down: QLinear, act: ops.Activation = "silu"
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down_proj, self.act = gate, up, down, act

    def __call__(self, x: mx.array, add: mx.array | None = None) -> mx.array:
        return self.down_proj(ops.gate_up(x, self.gate, self.up, self.act), add)


class Experts(nn.Module):
    """The chosen experts' gated MLPs, weighted and summed, + add: x and add: (..., k) -> (..., k).

    router: (e, k), to a logit an expert
    gate, up: (e, rows, k), down: (e, k, rows), stacks of all experts
    bias: (e,), added to the scores for the choice only
    shared: what every token gets besides
    observer: told the ids (..., n) of each choice; not of steps that a backend repeats (`ops.stepper`)
    """

    observer: Observer | None = None

    def __init__(
        self,
        router: QTensor,
        gate: QTensor,
        up: QTensor,
        down: QTensor,
        *,
        routing: ops.Routing,
        act: ops.Activation = "silu",
        bias: mx.array | None = None,
        shared: GatedMLP | None = None,
    ) -> None:
        super().__init__()
        self.router, self.routing, self.act = router, routing, act
        self.gate, self.up, self.down = gate, up, down
        if bias is not None:
            self.bias = bias
        if shared is not None:
            self.shared = shared

    @property
    def count(self) -> int:
        """How many experts there are."""
        return self.gate.shape[0]

    def __call__(self, x: mx.array, add: mx.array | None = None) -> mx.array:
        ids, weights = self._choose(x)
        if self.observer is not None:
            self.observer(ids)
        out = self._ask(x, ids, weights, add)
        return self.shared(x, add=out) if "shared" in self else out

    @stage("router")
    def _choose(self, x: mx.array) -> tuple[mx.array, mx.array]:
        return ops.route(ops.matmul(x, self.router), self.routing, bias=self.get("bias"))

    @stage("experts")
    def _ask(self, x: mx.array, ids: mx.array, weights: mx.array, add: mx.array | None) -> mx.array:
        inner = ops.gather_gate_up(x, self.gate, self.up, ids, self.act)  # (..., n, rows)
        return ops.gather_down(inner, self.down, ids, weights, add=add)
