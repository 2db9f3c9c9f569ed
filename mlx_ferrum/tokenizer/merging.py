"""Greedy merging of neighbours, the algorithm that byte-pair encoding and SentencePiece's BPE share."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush


def merge(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """Merge the neighbours of lowest rank, the leftmost first among equals, until none has a rank.

    rank(left, right) is None for a pair that never merges. Takes n log n steps for n symbols; the list
    is used up.
    """
    following = [*range(1, len(symbols)), -1]
    preceding = list(range(-1, len(symbols) - 1))
    heap: list[tuple[float, int, int]] = []
    for left in range(len(symbols) - 1):
        pair = symbols[left], symbols[left + 1]
        order = rank(*pair)
        if order is not None:
            heap.append((order, left, len(pair[0]) + len(pair[1])))
    heapify(heap)
    while heap:
        _, left, size = heappop(heap)
        right = following[left]
        # Symbols only grow or vanish, so the size tells whether the pair is still the one that was ranked.
        if not symbols[left] or right < 0 or len(symbols[left]) + len(symbols[right]) != size:
            continue
        symbols[left] += symbols[right]
        symbols[right] = ""
        after = following[left] = following[right]
        before = preceding[left]
        if after >= 0:
            preceding[after] = left
            order = rank(symbols[left], symbols[after])
            if order is not None:
                heappush(heap, (order, left, size + len(symbols[after])))
        if before >= 0:
            order = rank(symbols[before], symbols[left])
            if order is not None:
                heappush(heap, (order, before, len(symbols[before]) + size))
    return [symbol for symbol in symbols if symbol]
