"""How much memory the experts of a model get where nobody says so.

A model that fits in memory is mapped: nothing is faster. The experts of a mixture that does not fit are read from the
file when they are chosen, and as many as memory allows are kept. Memory has to hold the dense weights, too: they stay
mapped, every token reads all of them, and a missing page of them is as slow as a missing expert. So they come first,
then the keys and values, and the experts get the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import amounts
from .sizes import Sizes

POSITIONS = 8192  # tokens whose keys and values are left room for where nobody says how many
BESIDE = 300_000_000  # bytes: Python, MLX, activations
MAPPED = 0.9  # of the free memory: a model that takes no more is mapped

# Of the free memory, which other programs may want later. Reads that bypass the page cache leave no second copies, so
# that only dense weights need the rest; otherwise the page cache has a copy of every expert that was read lately, which
# helps only while most of the memory is its own.
DIRECT, BUFFERED = 2 / 3, 1 / 3


@dataclass(frozen=True)
class Plan:
    """What to do with the experts.

    nbytes: of memory for them; 0: they are mapped
    reason: of it, in a line
    is_short: memory has too little room for the experts of a token beside everything else
    """

    nbytes: int
    reason: str
    is_short: bool = False


def plan(
    sizes: Sizes,
    available: int,
    *,
    reserve: int | None = None,
    bypasses_cache: bool = True,
    whole_tokens: bool = False,
) -> Plan:
    """Choose for a model.

    available: bytes of memory that are free, files in the page cache included
    reserve: of them for keys and values; None: for `POSITIONS` tokens
    bypasses_cache: reads of experts go past the page cache
    whole_tokens: the experts of a token have to be there at a time, not only one of each layer
    """
    pool = sizes.pool(min(POSITIONS, sizes.context)) if reserve is None else reserve
    free, whole = amounts.size(available), sizes.nbytes + pool + BESIDE
    needed = f"{amounts.size(whole)} with {amounts.size(pool)} for keys and values"
    if whole <= MAPPED * available:
        return Plan(0, f"the model is mapped: it needs {needed}, {free} are free")
    if not sizes.experts:
        return Plan(0, f"the model is mapped: it needs {needed}, only {free} are free")
    share = DIRECT if bypasses_cache else BUFFERED
    rest = available - sizes.dense - BESIDE
    nbytes = int(min(max(rest - pool, sizes.a_token), share * available, sizes.experts))
    if nbytes < (sizes.a_token if whole_tokens else sizes.one_each) or rest < sizes.a_token:
        least = sizes.dense + BESIDE + sizes.a_token
        reason = (
            f"the model is mapped: only {free} are free, expected {amounts.size(least)} for its dense weights "
            "and the experts of a token"
        )
        return Plan(0, reason, is_short=True)
    reason = (
        f"{amounts.size(nbytes)} of {amounts.size(sizes.experts)} of experts are kept in memory, the others are read "
        f"when they are chosen: the model needs {needed}, {free} are free"
    )
    return Plan(nbytes, reason, is_short=rest - pool < sizes.a_token)
