"""The operations of mixtures of experts.

Ids are checked here, and read again by the library at each call: a recorded step is repeated for other experts.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.activation import ACTIVATIONS, NO_ACTIVATION
from ...kernels.cpu import native
from ...options import Activation, Routing
from ...tensor import QTensor
from .arguments import constant, floats, places, shaped
from .memory import empty, trace


def route(
    logits: np.ndarray, routing: Routing, *, bias: mx.array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    logits = floats(logits)
    experts, used = logits.shape[-1], routing.used
    ids, weights = (empty(*logits.shape[:-1], used, dtype=t) for t in (np.int32, np.float32))
    native.run(
        "Route",
        logits=logits,
        bias=None if bias is None else constant("route: bias", bias, experts),
        ids=ids,
        weights=weights,
        n=logits.size // experts,
        experts=experts,
        used=used,
        sigmoid=routing.gating == "sigmoid",
        normalise=routing.normalise,
        groups=routing.groups,
        groups_used=routing.groups_used,
        scale=routing.scale,
    )
    return ids, weights


def gather_matmul(
    x: np.ndarray, w: QTensor, ids: np.ndarray, *, bias: mx.array | None = None
) -> np.ndarray:
    return _gather(x, [w], ids, [bias])


def gather_gate_up(
    x: np.ndarray, gate: QTensor, up: QTensor, ids: np.ndarray, act: Activation
) -> np.ndarray:
    return _gather(x, [gate, up], ids, [None, None], ACTIVATIONS[act])


def _gather(
    x: np.ndarray, ws: list[QTensor], ids: np.ndarray, biases: list[Any], act: int = NO_ACTIVATION
) -> np.ndarray:
    x = floats(x)
    ids, (experts, rows, k) = _of_experts(ids, ws[0]), ws[0].shape
    used = ids.shape[-1]
    out = empty(*ids.shape, rows)
    native.run(
        "Gather",
        x=x,
        w=places(ws, biases),
        ids=ids,
        out=out,
        n=x.size // k,
        used=used,
        experts=experts,
        k=k,
        count=len(ws),
        act=act,
    )
    return out


def gather_down(
    x: np.ndarray,
    w: QTensor,
    ids: np.ndarray,
    weights: np.ndarray,
    *,
    add: np.ndarray | None = None,
) -> np.ndarray:
    x = floats(x)
    ids, (experts, rows, k) = _of_experts(ids, w), w.shape
    used = ids.shape[-1]
    shares = shaped("gather_down: weights", weights, *ids.shape)
    out = empty(*ids.shape[:-1], rows)
    if add is not None:
        add = shaped("gather_down: add", add, *out.shape)
    native.run(
        "GatherDown",
        x=x,
        w=places([w], [None]),
        ids=ids,
        weights=shares,
        add=add,
        out=out,
        n=ids.size // used,
        used=used,
        experts=experts,
        k=k,
    )
    return out


def _of_experts(ids: Any, w: QTensor) -> np.ndarray:
    """ids as contiguous int32. Raises ValueError if one of them is no expert of w."""
    found, experts = np.asarray(ids), w.shape[0]
    if found.size and not 0 <= found.min() <= found.max() < experts:
        raise ValueError(f"{w}: expert ids lie between 0 and {experts - 1}, found {found}")
    return trace(np.ascontiguousarray(found, np.int32))


def sigmoid_gate(x: np.ndarray, gate: np.ndarray, *, add: np.ndarray | None = None) -> np.ndarray:
    x, d = floats(x), x.shape[-1]
    gate = shaped("sigmoid_gate: gate", gate, *x.shape[:-1], 1)
    if add is not None:
        add = shaped("sigmoid_gate: add", add, *x.shape)
    out = empty(*x.shape)
    native.run("SigmoidGate", x=x, gate=gate, add=add, out=out, rows=gate.size, d=d)
    return out
