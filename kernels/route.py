"""route: the experts of each token and their weights, from a router's logits."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel, constant
from mlx_ferrum.options import Routing

from .header import header

LANES = 32
SIMDGROUPS = 4  # tokens per threadgroup
MOST_EXPERTS = 1024  # 32 per lane, which fit in registers
MOST_USED = LANES
GATINGS = {"softmax": 0, "sigmoid": 1}  # as in route.metal
BODY = """
    threadgroup float scores[GROUPS > 1 ? SIMDGROUPS * 32 * PER_LANE : 1];
    RouteShape shape = {logits_shape[1], USED, GROUPS, GROUPS_USED};
    size_t token = thread_position_in_grid.x / 32;
    route<PER_LANE, GATING, NORMALISE, BIAS, (GROUPS > 1)>(
        logits + token * shape.experts, bias, ids + token * USED, weights + token * USED, shape, scale[0],
        scores + (GROUPS > 1 ? 32 * PER_LANE * simdgroup_index_in_threadgroup : 0), thread_index_in_simdgroup);
"""


def route(
    logits: mx.array, routing: Routing, *, bias: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Selects experts in one launch.

    logits: (tokens, e), bias: (e,) -> ids: (tokens, n) int32, weights: (tokens, n) float32

    Raises ValueError for more than `MOST_EXPERTS` experts or `MOST_USED` of them used.
    """
    tokens, experts = logits.shape
    call = _call(tokens, experts, routing, None if bias is None else bias.shape)
    ids, weights = call([logits, logits if bias is None else bias, constant(routing.scale)])
    return ids, weights


@functools.lru_cache(KEPT)
def _call(tokens: int, experts: int, routing: Routing, bias: tuple[int, ...] | None) -> Call:
    _check(routing, experts, bias)
    return _kernel().prepare(
        template={
            "PER_LANE": -(-experts // LANES),
            "GATING": GATINGS[routing.gating],
            "NORMALISE": routing.normalise,
            "BIAS": bias is not None,
            "USED": routing.used,
            "GROUPS": routing.groups,
            "GROUPS_USED": routing.groups_used,
            "SIMDGROUPS": SIMDGROUPS,
        },
        grid=(LANES * tokens, 1, 1),
        threadgroup=(LANES * SIMDGROUPS, 1, 1),
        output_shapes=[(tokens, routing.used)] * 2,
        output_dtypes=[mx.int32, mx.float32],
    )


def _check(routing: Routing, experts: int, bias: tuple[int, ...] | None) -> None:
    if routing.used > MOST_USED or experts > MOST_EXPERTS:
        raise ValueError(
            f"route: {routing.used} of {experts} experts, "
            f"expected at most {MOST_USED} of {MOST_EXPERTS}"
        )
    if bias is not None and bias != (experts,):
        raise ValueError(f"route: a bias of shape {bias} for {experts} experts")


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="route",
        source=BODY,
        inputs=("logits", "bias", "scale"),
        outputs=("ids", "weights"),
        header=header("route.metal"),
    )
