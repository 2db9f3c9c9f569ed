"""What the metadata says of a mixture of experts: how many there are, how large, and how a router chooses.

Keys are `{architecture}.expert_…`; the gating functions are numbered as llama.cpp numbers them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ops import Gating, Routing
from .metadata import Metadata

MAX_EXPERTS = 1024
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3
_GATINGS: dict[int, Gating] = {SOFTMAX: "softmax", SIGMOID: "sigmoid"}


@dataclass(frozen=True)
class ExpertArgs:
    """Of the layers that have experts.

    count: of experts
    size: what each is wide inside
    shared_size: the same of the expert that every token gets, 0 where there is none
    dense_layers: so many layers from the first on have none
    by_scores: whether experts are chosen by their scores, to which a bias may be added, or by logits
    """

    count: int
    size: int
    shared_size: int
    dense_layers: int
    by_scores: bool
    routing: Routing


def expert_args(m: Metadata, *, size: int, shared_size: int = 0, normalise: bool) -> ExpertArgs:
    """Read and check what the metadata says. Raises ValueError naming the key.

    normalise: what the architecture does where the file does not say
    """
    count = m.size("expert_count", most=MAX_EXPERTS)
    if size < 1:
        raise ValueError(
            f"{m.architecture}: expected the width of an expert in expert_feed_forward_length or "
            "feed_forward_length, found none"
        )
    return ExpertArgs(
        count=count,
        size=size,
        shared_size=shared_size,
        dense_layers=m.size("leading_dense_block_count", 0, m.size("block_count"), zero=0),
        by_scores=_gating(m) != SOFTMAX_OF_CHOSEN,
        routing=_routing(m, count, normalise),
    )


def expert_size(m: Metadata) -> int:
    """`expert_feed_forward_length`; a file without it says how wide all of a token's experts are together."""
    used = m.size("expert_used_count", most=MAX_EXPERTS)
    share = m.size("feed_forward_length", 0, zero=0) // used
    return m.size("expert_feed_forward_length", share, zero=share)


def _gating(m: Metadata) -> int:
    return m.size("expert_gating_func", SOFTMAX, SOFTMAX_OF_CHOSEN, zero=SOFTMAX)


def _routing(m: Metadata, count: int, normalise: bool) -> Routing:
    function = _gating(m)
    groups, groups_used = _groups(m, count)
    of_chosen = function == SOFTMAX_OF_CHOSEN
    if of_chosen and groups > 1:
        raise NotImplementedError(
            f"{m.architecture}.expert_gating_func: {function} with groups of experts is not supported"
        )
    return Routing(
        used=m.size("expert_used_count", most=count // groups * groups_used),
        gating="softmax" if of_chosen else _GATINGS[function],
        normalise=of_chosen or m.get("expert_weights_norm", bool, normalise),
        scale=m.positive("expert_weights_scale", 1.0, zero=1.0),
        groups=groups,
        groups_used=groups_used,
    )


def _groups(m: Metadata, count: int) -> tuple[int, int]:
    """How many groups of two experts or more there are, and how many of them a token chooses among."""
    groups = m.size("expert_group_count", 1, max(1, count // 2), zero=1)
    if count % groups:
        raise ValueError(
            f"{m.architecture}.expert_group_count: expected a divisor of {count} experts, found {groups}"
        )
    unset = 1 if groups == 1 else None
    return groups, m.size("expert_group_used_count", groups, groups, zero=unset)
