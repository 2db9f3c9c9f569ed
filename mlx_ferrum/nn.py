"""Layers over quantized weights.

Weights are QTensors, so they are no parameters of the module: they stay in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from . import ops
from .profile import stage
from .tensor import QTensor

Observer = Callable[[ops.Array, ops.Array, ops.Array], None]
Reader = Callable[[ops.Array, ops.Array], None]


class Module(nn.Module):
    """As MLX's, whose parts are items of a dictionary, but they are attributes too.

    MLX finds them after Python's own search has failed with an error, which takes as long as half a launch.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.__dict__[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.__dict__.pop(name, None)


class QLinear(Module):
    """x: (..., k) -> (..., rows), with an optional bias (rows,)."""

    def __init__(self, weight: QTensor, bias: mx.array | None = None) -> None:
        super().__init__()
        self.weight = weight
        if bias is not None:
            self.bias = bias

    def __call__(self, x: ops.Array, add: ops.Array | None = None) -> ops.Array:
        """add: (..., rows), a residual to add to the product."""
        return ops.matmul(x, self.weight, bias=self.get("bias"), add=add)

    def _extra_repr(self) -> str:
        bias = ", bias" if "bias" in self else ""
        return f"{self.weight.block.name}, {self.weight.shape}{bias}"


class RMSNorm(Module):
    """x / rms(x) * weight over the last axis: x: (..., d) -> (..., d), weight: (d,)."""

    def __init__(self, weight: mx.array, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def __call__(self, x: ops.Array, add: ops.Array | None = None) -> ops.Array:
        """add: (..., d), a residual to add to the normed x."""
        return ops.rms_norm(x, self.weight, self.eps, add=add)

    @property
    def args(self) -> ops.Norm:
        """For operations that have a norm before them."""
        return self.weight, self.eps


class FusedLinear(Module):
    """Several linears that share their input, of mixed types, in one launch: x: (..., k) -> one (..., rows) each."""

    def __init__(self, *parts: QLinear) -> None:
        super().__init__()
        self.parts = list(parts)

    def __call__(self, x: ops.Array, norm: RMSNorm | None = None) -> list[ops.Array]:
        """norm: of x, before the products."""
        parts = self.parts
        weights = [part.weight for part in parts]
        biases = [part.get("bias") for part in parts]
        return ops.matmuls(x, weights, biases, norm=None if norm is None else norm.args)


class QEmbedding(Module):
    """ids: (...) -> (..., k) float32, times `scale`."""

    def __init__(self, weight: QTensor, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale

    def __call__(self, ids: ops.Array) -> ops.Array:
        return ops.rows(self.weight, ids, self.scale)

    def _extra_repr(self) -> str:
        return f"{self.weight.block.name}, {self.weight.shape}"


class GatedMLP(Module):
    """down(act(gate(x)) * up(x)) + add: x and add: (..., k) -> (..., k)."""

    def __init__(
        self, gate: QLinear, up: QLinear, down: QLinear, act: ops.Activation = "silu"
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act = gate, up, down, act

    def __call__(
        self, x: ops.Array, norm: RMSNorm | None = None, add: ops.Array | None = None
    ) -> ops.Array:
        """norm: of x, before the products."""
        gate, up, args = self.gate_proj, self.up_proj, None if norm is None else norm.args
        biases = [gate.get("bias"), up.get("bias")]
        inner = ops.gate_up(x, gate.weight, up.weight, self.act, biases=biases, norm=args)
        return self.down_proj(inner, add)


class Experts(Module):
    """The chosen experts' gated MLPs, weighted and summed, + add: x and add: (..., k) -> (..., k).

    router: (e, k), to a logit an expert
    gate, up: (e, rows, k), down: (e, k, rows), stacks of all experts
    bias: (e,), added to the scores for the choice only
    shared: what every token gets besides
    observer: called with logits (..., e), ids (..., n) and weights (..., n) of each choice, except in steps that a
        backend repeats; `ops.unrepeated` makes it see those too
    reader: called with x, before its norm, and ids (..., n) of each choice: begins to read what is on disk
    """

    observer: Observer | None = None
    reader: Reader | None = None

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

    def _extra_repr(self) -> str:
        types = dict.fromkeys(w.block.name for w in (self.gate, self.up, self.down))
        return f"{self.routing.used} of {self.count}, {' + '.join(types)}, {self.gate.shape[1:]}"

    def __call__(
        self, x: ops.Array, norm: RMSNorm | None = None, add: ops.Array | None = None
    ) -> ops.Array:
        """norm: of x, before all products."""
        state = x
        x, ids, weights = self._choose(x, norm)
        if self.reader is not None:
            self.reader(state, ids)
        if "shared" in self:
            add = self.shared(x, add=add)
        return self._ask(x, ids, weights, add)

    @stage("router")
    def _choose(self, x: ops.Array, norm: RMSNorm | None) -> tuple[ops.Array, ops.Array, ops.Array]:
        """Also x, normed."""
        if norm is None:
            logits = ops.matmul(x, self.router)
        else:
            x, logits = ops.norm_matmul(x, self.router, norm.args)
        ids, weights = ops.route(logits, self.routing, bias=self.get("bias"))
        if self.observer is not None:
            self.observer(logits, ids, weights)
        return x, ids, weights

    @stage("experts")
    def _ask(
        self, x: ops.Array, ids: ops.Array, weights: ops.Array, add: ops.Array | None
    ) -> ops.Array:
        inner = ops.gather_gate_up(x, self.gate, self.up, ids, self.act)  # (..., n, rows)
        return ops.gather_down(inner, self.down, ids, weights, add=add)
