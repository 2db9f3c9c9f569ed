"""The cases of the self-test for mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..blocks import Block
from ..ops import Routing
from ..tensor import QTensor
from .case import Case, Convert, Operations
from .weights import random_tensor

_EXPERTS, _USED = 4, 2
_FEW, _MANY = 2, 33  # tokens; of many, backends may take those of an expert together
_LEAST_K = 37  # of types whose block is one number
_ROUTINGS = {
    "softmax": Routing(8),
    "softmax, not normalised": Routing(2, normalise=False),
    "sigmoid, a bias": Routing(6, "sigmoid", scale=2.5),
    "sigmoid, groups": Routing(4, "sigmoid", groups=4, groups_used=2),
}


def of_type(rng: np.random.Generator, block: type[Block]) -> Iterator[Case]:
    """Products of stacks of the type."""
    k = 2 * block.weights if block.weights > 1 else _LEAST_K
    for tokens in (_FEW, _MANY):
        ids = np.stack([rng.permutation(_EXPERTS)[:_USED] for _ in range(tokens)])
        yield _gather_matmul(rng, _stack(rng, block, 21, k), ids)
        yield _gather_gate_up(rng, _stack(rng, block, 21, k), _stack(rng, block, 21, k), ids)
        yield _gather_down(rng, _stack(rng, block, 70, k), ids)


def of_arrays(rng: np.random.Generator, kind: str) -> Iterator[Case]:
    """Routers, and the gate of an expert that every token has."""
    for experts in (16, 128):
        for name, routing in _ROUTINGS.items():
            yield _route(rng, kind, experts, name, routing)
    for n, d in [(1, 257), (3, 64)]:
        yield _sigmoid_gate(rng, kind, n, d)


def _gather_matmul(rng: np.random.Generator, w: QTensor, ids: np.ndarray) -> Case:
    x, bias = _normal(rng, len(ids), w.shape[2]), _normal(rng, *w.shape[:2])

    def compute(run: Operations, array: Convert) -> Any:
        return run.gather_matmul(array(x), w, _ids(array, ids), bias=array(bias))

    return _case("gather_matmul", w, ids, compute)


def _gather_gate_up(rng: np.random.Generator, gate: QTensor, up: QTensor, ids: np.ndarray) -> Case:
    x = _normal(rng, len(ids), gate.shape[2])

    def compute(run: Operations, array: Convert) -> Any:
        return run.gather_gate_up(array(x), gate, up, _ids(array, ids), "silu")

    return _case("gather_gate_up", gate, ids, compute)


def _gather_down(rng: np.random.Generator, w: QTensor, ids: np.ndarray) -> Case:
    x, add = _normal(rng, *ids.shape, w.shape[2]), _normal(rng, len(ids), w.shape[1])
    weights = rng.random(ids.shape, np.float32)

    def compute(run: Operations, array: Convert) -> Any:
        return run.gather_down(array(x), w, _ids(array, ids), array(weights), add=array(add))

    return _case("gather_down", w, ids, compute)


def _case(op: str, w: QTensor, ids: np.ndarray, compute: Any) -> Case:
    tokens, used = ids.shape
    name = op if tokens == _FEW else f"{op}, 9+ rows"
    return Case(name, w.block.name, f"{tokens} tokens, {used} experts each of {w.shape}", compute)


def _route(rng: np.random.Generator, kind: str, experts: int, name: str, routing: Routing) -> Case:
    # no two scores are so close that rounding decides
    steps = np.broadcast_to(np.arange(experts), (3, experts))
    logits = (rng.permuted(steps, axis=-1) * (8 / experts) - 5).astype(np.float32)
    bias = rng.permutation(experts).astype(np.float32) / experts if "bias" in name else None

    def compute(run: Operations, array: Convert) -> Any:
        added = None if bias is None else array(bias)
        ids, weights = map(np.asarray, run.route(array(logits), routing, bias=added))
        out = np.zeros(logits.shape, np.float32)
        np.put_along_axis(out, ids, weights, axis=-1)
        return out

    return Case("route", kind, f"{name}, {routing.used} of {experts}", compute)


def _sigmoid_gate(rng: np.random.Generator, kind: str, n: int, d: int) -> Case:
    x, gate, add = _normal(rng, n, d), 5 * _normal(rng, n, 1), _normal(rng, n, d)

    def compute(run: Operations, array: Convert) -> Any:
        return run.sigmoid_gate(array(x), array(gate), add=array(add))

    return Case("sigmoid_gate", kind, f"x ({n}, {d})", compute)


def _stack(rng: np.random.Generator, block: type[Block], rows: int, k: int) -> QTensor:
    flat = random_tensor(rng, block, _EXPERTS * rows, k)
    return QTensor(block, (_EXPERTS, rows, k), flat.buffer, flat.offset)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _ids(array: Convert, ids: np.ndarray) -> Any:
    return array(ids.astype(np.int32))
