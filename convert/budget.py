"""Types for a model of a given size: bits go where they lower the loss most.

Each tensor has a curve of loss over size. The smallest point of each is taken first. Then the step on any curve
that lowers the loss most per byte is taken, again and again, until no step fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mlx_ferrum.blocks import (
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    Block,
)

Types = tuple[type[Block], ...]
LARGE: Types = (Q2_K, Q3_K, IQ4_XS, Q4_K, Q5_K, Q6_K, Q8_0)  # blocks of 256 weights, and one of 32
SMALL: Types = (Q4_0, IQ4_NL, Q5_0, Q5_1, Q8_0)  # for rows that 256 does not divide
TYPES: Types = (Q4_1, *dict.fromkeys((*LARGE, *SMALL)))  # all of which losses are known
PROBES: dict[Types, Types] = {LARGE: (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K), SMALL: (Q4_0, Q5_0, Q8_0)}


class Choice(NamedTuple):
    """A type for a tensor: its bytes, and the loss in nats a token that it adds."""

    block: type[Block]
    nbytes: int
    loss: float


def bits(block: type[Block]) -> float:
    """Bits of a weight."""
    return 8 * block.bytes / block.weights


def candidates(k: int, stored: type[Block]) -> list[type[Block]]:
    """What a tensor with rows of k weights may become: the types below the one it is stored in, and that one."""
    below = [b for b in _menu(k) if bits(b) < bits(stored) and k % b.weights == 0]
    return [*below, stored]


def divides(k: int) -> bool:
    """Whether any block divides rows of k weights; tensors of other rows stay as they are."""
    return any(k % block.weights == 0 for block in _menu(k))


def probe(k: int, target: float) -> type[Block]:
    """The type to measure a tensor in: the largest one of at most `target` bits a weight, or the smallest there is."""
    kinds = PROBES[_menu(k)]
    return next((b for b in reversed(kinds) if bits(b) <= target), kinds[0])


def _menu(k: int) -> Types:
    return SMALL if k % Q4_K.weights else LARGE


def allocate(choices: Mapping[str, Sequence[Choice]], nbytes: int) -> dict[str, Choice]:
    """A choice for each tensor, together at most `nbytes`, of little loss.

    Raises ValueError if even the smallest choices are larger.
    """
    curves = {name: hull(given) for name, given in choices.items()}
    chosen = {name: curve[0] for name, curve in curves.items()}
    left = nbytes - sum(choice.nbytes for choice in chosen.values())
    if left < 0:
        raise ValueError(f"expected room for {nbytes - left:,} bytes at least, found {nbytes:,}")
    at = dict.fromkeys(curves, 0)
    steps = [step for name in curves if (step := _step(curves[name], 0, name)) is not None]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        following = curves[name][at[name] + 1]
        cost = following.nbytes - chosen[name].nbytes
        if cost > left:
            continue  # the later steps of this tensor cost more loss than they would save elsewhere
        left -= cost
        chosen[name], at[name] = following, at[name] + 1
        if (step := _step(curves[name], at[name], name)) is not None:
            heapq.heappush(steps, step)
    return chosen


def _step(curve: Sequence[Choice], i: int, name: str) -> tuple[float, str] | None:
    """The loss per byte that the step from point i adds (below 0), and its tensor; None at the end."""
    return None if i + 1 == len(curve) else (_slope(curve[i], curve[i + 1]), name)


def _slope(a: Choice, b: Choice) -> float:
    return (b.loss - a.loss) / (b.nbytes - a.nbytes)


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices worth taking, smallest first: each step lowers the loss, by less for a byte than the one before."""
    curve: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.nbytes, c.loss)):
        if curve and choice.loss >= curve[-1].loss:
            continue
        while len(curve) > 1 and _slope(curve[-2], curve[-1]) >= _slope(curve[-1], choice):
            curve.pop()
        curve.append(choice)
    return curve
