"""The operations of mixtures of experts.

Ids are checked here, and read again by the library at each call: a recorded step is repeated for other experts.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.activation import ACTIVATIONS, NO_ACTIVATION
from ...kernels.cpu import calls, native
from ...options import Activation, Routing
from ...tensor import QTensor
from .arguments import address, floats, places, shaped
from .memory import empty


def route(
    logits: np.ndarray, routing: Routing, *, bias: mx.array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    logits = floats(logits)
    experts, used = logits.shape[-1], routing.used
    _check_routing(routing, experts)
    added = None if bias is None else shaped("route: bias", bias, experts)
    ids = np.empty((*logits.shape[:-1], used), np.int32)
    shares = empty(*ids.shape)
    call = calls.Route(
        *(address(logits), address(added), address(ids), address(shares)),
        *(logits.size // experts, experts, used, routing.gating == "sigmoid", routing.normalise),
        *(routing.groups, routing.groups_used, routing.scale),
    )
    native.run(call, logits, added, ids, shares)
    return ids, shares


def _check_routing(routing: Routing, experts: int) -> None:
    if not 1 <= routing.used <= experts:
        raise ValueError(f"route: a token gets 1 to {experts} experts, found {routing.used}")
    if routing.groups < 1 or experts % routing.groups:
        raise ValueError(f"route: {experts} experts do not make {routing.groups} groups")
    if not 1 <= routing.groups_used <= routing.groups:
        raise ValueError(
            f"route: expected 1 to {routing.groups} groups, found {routing.groups_used}"
        )


def gather_matmul(
    x: np.ndarray, w: QTensor, ids: np.ndarray, *, bias: mx.array | None = None
) -> np.ndarray:
    return _gather(x, [w], ids, [bias])


def gather_gate_up(
    x: np.ndarray, gate: QTensor, up: QTensor, ids: np.ndarray, act: Activation
) -> np.ndarray:
    if gate.shape[:-1] != up.shape[:-1]:
        raise ValueError(f"gather_gate_up: {gate} and {up} differ in rows")
    return _gather(x, [gate, up], ids, [None, None], ACTIVATIONS[act])


def _gather(
    x: np.ndarray, ws: list[QTensor], ids: np.ndarray, biases: list[Any], act: int = NO_ACTIVATION
) -> np.ndarray:
    x = floats(x)
    for w in ws:
        ids, experts, rows, k = _fitting(x, w, ids, x.shape[:-1])
    used = ids.shape[-1]
    out, weights = empty(*ids.shape, rows), places(ws, biases)
    call = calls.Gather(
        *(address(x), address(weights), address(ids), address(out)),
        *(x.size // k, used, experts, k, len(ws), act),
    )
    native.run(call, x, ids, out)
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
    ids, experts, rows, k = _fitting(x, w, ids, x.shape[:-2])
    if x.shape[:-1] != ids.shape:
        raise ValueError(f"gather: x of shape {x.shape} does not fit ids of shape {ids.shape}")
    used = ids.shape[-1]
    shares = shaped("gather_down: weights", weights, *ids.shape)
    out = empty(*ids.shape[:-1], rows)
    if add is not None:
        add = shaped("gather_down: add", add, *out.shape)
    call = calls.GatherDown(
        *(
            address(x),
            address(places([w], [None])),
            address(ids),
            address(shares),
            address(add),
            address(out),
        ),
        *(ids.size // used, used, experts, k),
    )
    native.run(call, x, ids, shares, add, out)
    return out


def _fitting(
    x: np.ndarray, w: QTensor, ids: Any, tokens: tuple[int, ...]
) -> tuple[np.ndarray, int, int, int]:
    """ids as int32, and the three sizes of the stack. Raises ValueError for what does not fit or is no expert."""
    if len(w.shape) != 3 or x.shape[-1] != w.shape[-1]:
        raise ValueError(f"gather: x of shape {x.shape} does not fit {w}")
    found = np.asarray(ids)
    if found.shape[:-1] != tokens or not found.shape[-1:]:
        raise ValueError(f"gather: x of shape {x.shape} does not fit ids of shape {found.shape}")
    experts, rows, k = w.shape
    if found.size and not 0 <= found.min() <= found.max() < experts:
        raise ValueError(f"{w}: expert ids lie between 0 and {experts - 1}, found {found}")
    return np.ascontiguousarray(found, np.int32), experts, rows, k


def sigmoid_gate(x: np.ndarray, gate: np.ndarray, *, add: np.ndarray | None = None) -> np.ndarray:
    x, d = floats(x), x.shape[-1]
    gate = shaped("sigmoid_gate: gate", gate, *x.shape[:-1], 1)
    if add is not None:
        add = shaped("sigmoid_gate: add", add, *x.shape)
    out = empty(*x.shape)
    call = calls.SigmoidGate(address(x), address(gate), address(add), address(out), gate.size, d)
    native.run(call, x, gate, add, out)
    return out
