"""The operations of mixtures of experts.

Ids are checked here, and read again by the library at each call: a recorded step is repeated for other experts.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.activation import ACTIVATIONS, NO_ACTIVATION
from ...kernels.cpu import native
from ...options import Activation, Norm, Routing
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


def want_experts(w: QTensor, ids: np.ndarray) -> None:
    """Experts of a stack that is read from disk are used next: reads of those that are not in memory begin."""
    ids = _of_experts(ids, w)
    used = ids.shape[-1]
    native.run("WantExperts", w=places([w], [None]), ids=ids, n=ids.size // used, used=used)


def expect_experts(
    x: np.ndarray,
    norm: Norm,
    router: QTensor,
    w: QTensor,
    routing: Routing,
    bias: mx.array | None = None,
) -> None:
    """Experts of a stack that is read from disk may be used soon: those that a router chooses for a guess of its input.

    x: (..., k), before the norm; router: (e, k), bias: (e,), w: (e, rows, k)
    """
    x = floats(x)
    experts, k = router.shape
    native.run(
        "ExpectExperts",
        x=x,
        norm=constant("expect_experts: norm", norm[0], k),
        w=places([router, w], [None, None]),
        bias=None if bias is None else constant("expect_experts: bias", bias, experts),
        n=x.size // k,
        k=k,
        experts=experts,
        used=routing.used,
        sigmoid=routing.gating == "sigmoid",
        groups=routing.groups,
        groups_used=routing.groups_used,
        eps=norm[1],
    )


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
